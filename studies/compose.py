"""Checks a command line, every job of a sweep, before anything expensive starts; composes the config of a run."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from registries.plugins import import_plugins
from registries.registry import UserError, defaults, parameters
from studies.composer import Composer, lines_of, root_of
from studies.overrides import MAX_JOBS, as_typed, read_lines, shown, swept_lines

CONF = Path(__file__).resolve().parent.parent / "conf"
# Group -> what the code that builds its components gives them, beside what the config does.
SUPPLIED = {
    "replacement": ("shape",),
    "placement": ("model", "scores"),
    "adapter": ("source_width", "target_width"),
    "compressor": ("source_width", "target_width", "tokens"),
    "model": ("cache_dir",),
    "optimizer": ("parameters",),
    "recovery": ("workspace",),
}
SECOND_MODEL = {"adapter": "tiny_phi", "compressor": "smollm2_135m"}  # group -> the default of model@source with it


def compose(overrides: Sequence[str], config_name: str = "config") -> DictConfig:
    """The checked config that these overrides make.

    Raises:
        UserError: everything that is wrong with it, in one error.
    """
    start, errors = load_plugins(overrides), []
    parsed = read_lines(without_search_path(overrides), errors)
    swept = [item for item in parsed if item.is_sweep_override()]
    if swept:
        texts = " or ".join(as_typed(*swept[0].input_line.split("=", 1)))
        raise UserError(
            f"{shown(swept[0].input_line)} names several values: one config holds one; a sweep is started with -m"
            + (f"; a text with commas is typed {texts}" if texts else "")
        )
    with _hydra() as loader:
        cfg = Composer(config_name, start, loader).checked(parsed, errors)
    if errors:
        raise UserError(_told(errors, parsed))
    return cfg


class CommandLine(NamedTuple):
    """A command line that was checked.

    Attributes:
        overrides: to hand to Hydra.
        sweeping: whether it is a sweep: asked for, or because the experiment is one.
        devices: that every job computes on, each with a process of its own.
        in_turn: whether Hydra's own sweeper and launcher run the jobs, one after the other.
    """

    overrides: list[str]
    sweeping: bool
    devices: int
    in_turn: bool


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
    with _hydra(folder, more) as loader:
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
        in_turn = composer.in_turn
    if len(devices) > 1:
        errors.append(f"trainer.devices={sorted(devices)}: the jobs of a sweep share their processes; give one number")
    if errors:
        raise UserError(_told(errors, parsed))
    groups = {root_of(item) for item in swept}
    lines = [_in_sweep(item, groups, composer.options) for item in parsed] if multirun else lines_of(parsed)
    return CommandLine([*lines, *start], multirun, *devices, in_turn)


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


def _told(errors: Sequence[str], parsed: Sequence[Override]) -> list[str]:
    """Each error once; where a text was meant that Hydra took for something else, with the line as it must be typed."""
    told = []
    for message in dict.fromkeys(errors):
        for item in parsed:
            key, _, text = item.input_line.partition("=")
            value = f"{key.rpartition('.')[2].lstrip('+')}={item.value()!r}"
            meant = f"{value} is not valid: Input should be a valid string" in message
            forms = as_typed(key, text)[-1:] if meant and not item.is_sweep_override() else []
            message += f"; as a text, type {forms[0]}" if forms else ""
        told.append(message)
    return told


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


def load_plugins(overrides: Sequence[str]) -> list[str]:
    """Import the plugins that the overrides name, and give each component without a YAML its config group option.

    Returns:
        Hydra overrides to be added instead of a search path among the overrides: what that names, and the folders of
        plugins with a `conf/` of their own.

    Raises:
        UserError: a plugin that cannot be imported, or a folder of the search path that is not there.
    """
    if os.environ.get("GRAFTLAB_CACHE") == "":
        del os.environ["GRAFTLAB_CACHE"]  # empty is not set, as shells have it
    modules: list[str] = []
    places: list[str] = []
    for item in read_lines(overrides, []):  # what cannot be read is told with all other errors
        if item.key_or_group == "plugins" and _is_texts(item.value()):
            modules = item.value()
        elif item.key_or_group == "plugins" and isinstance(item.value(), str):
            modules = [item.value()]
        elif _is_search_path(item):
            places = item.value()
    folders = import_plugins(modules)
    if modules or folders:
        _store_options(folders)
    for place in places:
        if "://" not in place.replace("file://", "") and not Path(place.removeprefix("file://")).is_dir():
            raise UserError(f"hydra.searchpath: {place} is no folder (looked from {Path.cwd()})")
    places = [*places, *(f"file://{folder}" for folder in folders)]
    return [f"hydra.searchpath=[{','.join(map(_as_item, places))}]"] if places else []


def _as_item(text: str) -> str:
    """A text in a list, in quotes where it needs them."""
    return text if all(char.isascii() and (char.isalnum() or char in "/.:_-") for char in text) else repr(text)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_search_path(item: Override) -> bool:
    return item.key_or_group == "hydra.searchpath" and _is_texts(item.value())


def without_search_path(lines: Sequence[str]) -> list[str]:
    """Override lines without the search path, which stands in what `load_plugins` returns."""
    places = [item.input_line for item in read_lines(lines, []) if _is_search_path(item)]
    return [line for line in lines if line not in places]


def _store_options(folders: Sequence[Path]) -> None:
    """Put a group option made from its signature into Hydra's ConfigStore for every component that has no YAML."""
    from data_modules import DATASETS
    from data_modules.block_settings import BlockSettings
    from lightning_modules import OPTIMIZERS, STAGES, options
    from registries import ADAPTERS, ATTENTION, COMPRESSORS, MODELS, PLACEMENTS
    from registries.adapters import is_trained

    groups = {
        "replacement": (ATTENTION, options.surgery_options),
        "placement": (PLACEMENTS, options.placement_options),
        "model": (MODELS, options.model_options),
        "optimizer": (OPTIMIZERS, options.optimizer_options),
        "dataset": (DATASETS, BlockSettings),
        "adapter": (ADAPTERS, options.adapter_options),
        "compressor": (COMPRESSORS, options.compressor_options),
    }
    for group, (registry, shared) in groups.items():
        for name in registry.names():
            if any((folder / group / f"{name}.yaml").is_file() for folder in (CONF, *folders)):
                continue
            node = {"name": name, **defaults(shared), **_own_keys(registry.get(name), group)}
            if group in SECOND_MODEL:
                default = {"override /model@_global_.source": SECOND_MODEL[group]}
                node |= {"defaults": ["/adapter_data@_global_", default]}
            if group == "adapter" and is_trained(name):
                node |= defaults(options.adapter_training_options)
            ConfigStore.instance().store(group=group, name=name, node=node)
    for name in STAGES.names():
        if not any((folder / "recovery" / f"{name}.yaml").is_file() for folder in (CONF, *folders)):
            node, package = _own_keys(STAGES.get(name), "recovery"), f"recovery.{name}"
            ConfigStore.instance().store(group="recovery", name=name, node=node, package=package)


def _own_keys(component: Any, group: str) -> dict[str, Any]:
    """Key -> default of what a component takes from the config; ??? where it must be given."""
    keys = [key for key in parameters(component) if key not in SUPPLIED.get(group, ())]
    return {key: defaults(component).get(key, "???") for key in keys}


def _jobs(parsed: Sequence[Override], composer: Composer, errors: list[str]) -> Iterator[list[Override]]:
    """The jobs of a sweep: every combination of the swept values (of a range that a sweeper draws from, its ends).

    Of the seeds, which nothing else depends on, each is in one job; in all others it is the first.
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


@contextmanager
def _hydra(folder: Path | None = None, more: str | None = None) -> Iterator[ConfigLoader]:
    """Hydra, initialised on a config folder (ours), and on one more; what was initialised before is put back."""
    with initialize_config_dir(str(folder or CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        if more is not None:  # at the place that Hydra gives it
            anchor = SearchPathQuery(provider="schema")
            loader.config_search_path.prepend("command-line", f"file://{Path(more).absolute()}", anchor)
            loader.repository.initialize_sources(loader.config_search_path)
        yield loader
