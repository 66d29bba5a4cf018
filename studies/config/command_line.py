"""Checks a command line, every job of a sweep, before anything expensive starts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.types import Override

from registries.registry import UserError
from studies.config.compose import as_told, hydra_on
from studies.config.composer import Composer, lines_of, root_of
from studies.config.overrides import MAX_JOBS, as_typed, read_lines, shown, swept_lines
from studies.config.plugin_options import load_plugins, without_search_path


class CommandLine(NamedTuple):
    """A command line that was checked.

    Attributes:
        overrides: to hand to Hydra.
        sweeping: whether it is a sweep: asked for, or because the experiment is one.
        devices: that every job computes on, each with a process of its own.
        in_turn: whether Hydra's own sweeper and launcher run the jobs, one after the other.
        jobs: how many a sweep has; None where its sweeper decides that.
        keys: that a sweep is over.
    """

    overrides: list[str]
    sweeping: bool
    devices: int
    in_turn: bool
    jobs: int | None
    keys: list[str]


def check_command_line(
    overrides: Sequence[str], multirun: bool, config_name: str, folder: Path | None = None, more: str | None = None
) -> CommandLine:
    """Check the job, or every job of a sweep, that these overrides ask for.

    Args:
        folder: of the configs, instead of ours.
        more: another folder of configs (`--config-dir`).

    Raises:
        UserError: every error of every job, each once.
    """
    start, errors = load_plugins(overrides), []
    parsed = read_lines(without_search_path(overrides), errors)
    with hydra_on(folder, more) as loader:
        composer = Composer(config_name, start, loader)
        multirun = multirun or any(item.input_line.upper() == "HYDRA.MODE=MULTIRUN" for item in parsed)
        axes = composer.axes(parsed)
        if axes:
            multirun, start = True, [*start, "hydra.sweeper.params=null"]  # they are given one by one
            typed = {item.key_or_group for item in parsed}
            parsed = [item for item in parsed if not item.key_or_group.startswith("hydra.sweeper.params")]
            parsed += read_lines([line for key, line in axes.items() if key not in typed], errors)
        swept = [item for item in parsed if item.is_sweep_override()]
        if swept and not multirun:
            errors.append(_needs_sweep(swept[0], composer.is_group(swept[0])))
            devices = set()
        else:
            devices = composer.check_all(_jobs(parsed, composer, errors) if multirun else [parsed], errors)
        errors += _sweep_errors(swept, composer.in_turn) if multirun and not errors else []
        in_turn, jobs = composer.in_turn, None
        if composer.grid and not errors:
            jobs = math.prod(len(swept_lines(item, composer.options)) for item in swept)
    if len(devices) > 1:
        errors.append(f"trainer.devices={sorted(devices)}: the jobs of a sweep share their processes; give one number")
    if errors:
        raise UserError(as_told(errors, parsed))
    groups = {root_of(item) for item in swept}
    lines = [_in_sweep(item, groups, composer.options) for item in parsed] if multirun else lines_of(parsed)
    keys = [item.key_or_group for item in swept]
    return CommandLine([*lines, *start], multirun, *devices, in_turn, jobs, keys)


def _sweep_errors(swept: Sequence[Override], in_turn: bool) -> list[str]:
    """What is wrong with a sweep as such."""
    errors = [
        f"{shown(item.input_line)}: Hydra's own keys cannot be swept over; give one value"
        for item in swept
        if item.is_hydra_override()
    ]
    intervals = [item.input_line for item in swept if item.is_interval_sweep()]
    if intervals and in_turn:
        errors.append(f"{intervals[0]}: a sweep tries values one by one; name them, such as 0.1,0.2,0.5")
    return errors


def _needs_sweep(item: Override, is_group: bool) -> str:
    message = f"{shown(item.input_line)} names several values: add -m to sweep over them, or quote a list as [a,b]"
    texts = [] if is_group else as_typed(*item.input_line.split("=", 1))[:1]
    return message + (f", or a text as {texts[0]}" if texts else "")


def _in_sweep(item: Override, swept: set[str], options: Any) -> str:
    """An override, as a sweep of one value where it sets a key of a swept group, and with a `glob` spelled out.

    Hydra composes a sweep's config without what is swept first: there, `replacement.depth=4` would be an unknown key
    beside `replacement=toroidal,other`.
    """
    key, _, value = item.input_line.partition("=")
    if "glob(" in value and item.is_sweep_override():
        values = ",".join(line.partition("=")[2] for line in swept_lines(item, options))
        return f"{item.get_key_element()}=choice({values})"
    if item.is_sweep_override() or item.is_delete() or item.key_or_group.split(".")[0] not in swept:
        return item.input_line
    return f"{key}=choice({value or repr('')})"


def _jobs(parsed: Sequence[Override], composer: Composer, errors: list[str]) -> Iterator[list[Override]]:
    """The jobs of a sweep: every combination of the swept values (of a range that a sweeper draws from, its ends).

    Each seed is checked in one job only: nothing else depends on it. All other jobs are checked with the first seed.
    """
    choices, seeds, count = [], [], 1
    for item in parsed:
        try:
            lines = swept_lines(item, composer.options) if item.is_sweep_override() else [item.input_line]
        except UserError as error:
            errors += error.messages
            continue
        values = [composer.read(line) for line in lines]
        count *= len(values)
        if count > MAX_JOBS:
            errors.append(f"{shown(item.input_line)} makes more than {MAX_JOBS:,} jobs of this sweep; split it")
            return
        if item.key_or_group == "seed":
            values, *seeds = [[value] for value in values]
        choices.append(values)
    yield from map(list, itertools.product(*choices))
    for seed in seeds:
        yield [*(values[0] for values in choices), *seed]
