"""Composes and checks the config of a job. What was found out for one job of a sweep serves the others.

Hydra stops at its first error and knows no nearest match. So the overrides are checked one by one first, what is
left is composed, and the composed config is checked as a whole: the user gets every error in one message.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from hydra import compose as hydra_compose
from hydra.core.config_loader import ConfigLoader
from hydra.core.default_element import GroupDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from registries.registry import UserError
from studies.config.composed_config import ComposedConfig, with_values
from studies.config.launchers import missing_extras
from studies.config.override_errors import checked_option, key_errors
from studies.config.overrides import read_line

SEARCH_SECONDS = 1.0  # seconds for which the jobs of a sweep are searched for more errors when there are some


class Composer:
    """Composes and checks the configs of one command line. What it found out for one job serves the others.

    Hydra takes 60 ms to compose a config and 10 ms to tell a group from a key, and a sweep may have 1,000 jobs.

    Args:
        config_name: the primary config.
        start: overrides that need no check.
        loader: of Hydra, which is initialised for as long as this is used.
    """

    def __init__(self, config_name: str, start: Sequence[str], loader: ConfigLoader):
        self.config_name, self.start, self.loader = config_name, list(start), loader
        self.grid = True  # whether Hydra's own sweeper makes the jobs: every combination of values
        self.in_turn = True  # and its own launcher runs them
        self.read = cache(read_line)
        self.options = cache(self._options)
        self._groups = cache(self._list_groups)
        self._composed = cache(self._compose_lines)
        self._stands_alone = cache(self._sets_its_own_keys_alone)
        self._first: tuple[str, ...] = ()
        self._bases: dict[tuple[str, ...], ComposedConfig] = {}
        self._line_errors: dict[tuple[int, str], list[str]] = {}
        self._known: dict[Any, list[str]] = {}

    def checked(self, parsed: Sequence[Override], errors: list[str]) -> DictConfig | None:
        """The config of one job; what is wrong with it is told in `errors`, and None is returned."""
        from studies.config.check import config_errors

        try:
            base, changes = self._split(parsed, errors)
            cfg, plain = with_values(base, changes)
            errors += config_errors(plain, self._known)
        except UserError as error:
            errors += error.messages
        except OmegaConfBaseException as error:
            errors.append(reason_of(error))
        return None if errors else cfg

    def check_all(self, jobs: Iterable[Sequence[Override]], errors: list[str]) -> set[int]:
        """Check every job of a sweep as `checked` does. Returns the numbers of devices that the jobs ask for."""
        devices, begun = set(), None
        for job in jobs:
            cfg = self.checked(job, errors)
            devices |= {cfg.trainer.devices} if cfg is not None else set()
            begun = begun or time.monotonic()
            if errors and time.monotonic() - begun > SEARCH_SECONDS:
                break  # the sweep is refused: what is wrong with its other jobs is told the next time
        return devices

    def axes(self, parsed: Sequence[Override]) -> dict[str, str]:
        """Key -> override of what the experiment that was asked for sweeps over (its `hydra.sweeper.params`)."""
        experiments = [item for item in parsed if item.key_or_group.split(".")[0] in ("experiment", "size")]
        hydras = [item for item in parsed if item.key_or_group.startswith(("hydra.sweeper", "hydra/sweeper"))]
        asked = [item for item in experiments if item.key_or_group == "experiment"]
        if not asked + hydras:
            return {}
        swept = [item.input_line for item in experiments if "." not in item.key_or_group and item.is_sweep_override()]
        if swept or len(asked) > 1:
            raise UserError(f"{(swept or lines_of(asked))[-1]}: an experiment is a sweep of its own; run one at a time")
        if any(item.value() not in self.options(item.key_or_group) for item in asked):
            return {}  # told with all other errors
        with suppress(UserError, OmegaConfBaseException):  # likewise
            cfg = self._hydra_composes((*self.start, *lines_of(experiments), *lines_of(hydras)))
            axes = OmegaConf.select(cfg, "hydra.sweeper.params") or {}
            return {key: f"{key}={_choices(axes[key])}" for key in axes}
        return {}

    def _split(self, parsed: Sequence[Override], errors: list[str]) -> tuple[ComposedConfig, list[Override]]:
        """What the groups of a job compose, and the overrides that give values to its keys."""
        groups, values = [], []
        for item in parsed:
            (groups if self.is_group(item) else values).append(item)
        # Hydra's own keys cannot be swept over, so that they are composed with the groups.
        hydras = [item for item in values if item.key_or_group.split(".")[0] == "hydra"]
        base = self._base(groups, hydras)
        errors += base.errors
        changes = []
        for item in values:
            if item in hydras or item.key_or_group.split(".")[0] in base.undecided:
                continue
            key = (id(base), item.input_line)
            if key not in self._line_errors:
                self._line_errors[key] = key_errors(item, base.cfg)
            errors += self._line_errors[key]
            if not self._line_errors[key]:
                changes.append(item)
        return base, changes

    def _base(self, groups: Sequence[Override], hydras: Sequence[Override]) -> ComposedConfig:
        key = tuple(lines_of([*groups, *hydras]))
        if key not in self._bases:
            self._bases[key] = self._compose(groups, hydras)
        return self._bases[key]

    def _compose(self, groups: Sequence[Override], hydras: Sequence[Override]) -> ComposedConfig:
        good, undecided, errors = {}, set(), []
        for item in groups:
            option, wrong = checked_option(item, self.options(item.key_or_group))
            errors += wrong
            place = item.get_key_element().lstrip("+")
            if option is None:
                undecided.add(root_of(item))
            else:
                good[place] = option  # of two, the last counts, as with values
        cfg = self._together((*self.start, *good.values(), *lines_of(hydras)))
        texts = {key: repr(value) for key, value in OmegaConf.to_container(cfg).items()}
        linked = {key: set(re.findall(r"\$\{(\w*)", text)) for key, text in texts.items() if "${" in text}
        return ComposedConfig(cfg, {}, linked, undecided, errors)

    def _together(self, lines: tuple[str, ...]) -> DictConfig:
        """What these overrides compose, as a copy.

        Options that set nothing but their own group's keys can be put together: of 100 combinations of such options
        of two groups, 19 are composed.
        """
        self._first = self._first or lines
        first = self._first
        changed = [place for place, pair in enumerate(zip(first, lines, strict=False)) if pair[0] != pair[1]]
        cfg = copy.deepcopy(self._composed(first))
        for place in changed:
            alone = (*first[:place], lines[place], *first[place + 1 :])
            if len(first) != len(lines) or not self._stands_alone(first[place], alone[place], alone):
                return copy.deepcopy(self._composed(lines))
            root = root_of(self.read(lines[place]))
            with open_dict(cfg):
                cfg[root] = copy.deepcopy(self._composed(alone)._get_node(root))
        return cfg if len(first) == len(lines) else copy.deepcopy(self._composed(lines))

    def _sets_its_own_keys_alone(self, before: str, line: str, lines: tuple[str, ...]) -> bool:
        """Whether two options of a group fill no other group, and differ in the group's keys alone.

        `lines` are the first job's, with `line` in the place of `before`.
        """
        for item in (self.read(before), self.read(line)):
            if not self._fills_one_group(f"{item.key_or_group}/{item.value()}", item.key_or_group):
                return False
        first, changed = self._composed(self._first), self._composed(lines)
        root = root_of(self.read(line))
        return set(first) == set(changed) and all(
            first._get_node(key) == changed._get_node(key) for key in first if key != root
        )

    def _fills_one_group(self, path: str, group: str) -> bool:
        """Whether a config file, and what it inherits, has no package but the group's and chooses no other option."""
        loaded = self.loader.repository.load_config(path)
        if loaded is None or loaded.header["package"] not in (None, group):
            return False
        inherited = [item for item in loaded.defaults_list if not item.is_self()]
        if any(isinstance(item, GroupDefault) or item.package for item in inherited):
            return False
        folder = path.rpartition("/")[0]
        paths = [item.path[1:] if item.path.startswith("/") else f"{folder}/{item.path}" for item in inherited]
        return all(self._fills_one_group(item, group) for item in paths)

    def _compose_lines(self, lines: tuple[str, ...]) -> DictConfig:
        """What these overrides compose, without Hydra's own part."""
        cfg = self._hydra_composes(lines)
        missing = missing_extras(cfg)
        if missing:
            raise UserError(missing)
        self.grid, by_itself = (_is_basic(cfg, part) for part in ("sweeper", "launcher"))
        self.in_turn = self.grid and by_itself
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    def _hydra_composes(self, lines: Sequence[str]) -> DictConfig:
        """What these overrides compose. Raises UserError with what Hydra says: it knows lines that we do not."""
        try:
            return hydra_compose(self.config_name, list(lines), return_hydra_config=True)
        except Exception as error:  # some of its own checks raise ValueError, TypeError or AssertionError
            raise UserError(reason_of(error)) from error

    def _options(self, group: str) -> list[str]:
        return self._listed(group, ObjectType.CONFIG)

    def _list_groups(self, parent: str) -> list[str]:
        return self._listed(parent, ObjectType.GROUP)

    def _listed(self, folder: str, kind: ObjectType) -> list[str]:
        try:
            return self.loader.get_group_options(folder, kind, self.config_name, self.start)
        except Exception as error:  # whatever Hydra meets in folders of the user's
            raise UserError(reason_of(error)) from error

    def is_group(self, item: Override) -> bool:
        """Whether an override chooses an option of a config group."""
        parent, slash, name = item.key_or_group.rpartition("/")
        if "@" in item.get_key_element():
            return True
        return name in self._groups(parent) if slash else item.key_or_group in self._groups("")


def _is_basic(cfg: DictConfig, part: str) -> bool:
    """Whether the sweeper, or the launcher, is Hydra's own."""
    return str(OmegaConf.select(cfg, f"hydra.{part}._target_")).startswith("hydra._internal.core_plugins.basic_")


def root_of(item: Override) -> str:
    """The key at the top of the config that a group's option fills."""
    return item.package or item.key_or_group


def _choices(values: Any) -> str:
    return ",".join(map(str, values)) if OmegaConf.is_list(values) else str(values)


def reason_of(error: BaseException) -> str:
    """Hydra's message on one line, with that of its cause."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip()) or type(error).__name__
    text = text.partition(" full_key: ")[0]
    cause = reason_of(error.__cause__) if error.__cause__ else ""
    return f"{text}: {cause}" if cause and cause not in text else text


def lines_of(parsed: Sequence[Override]) -> list[str]:
    return [item.input_line for item in parsed]
