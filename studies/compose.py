"""Composes the config of a run, or of every job of a sweep, and checks it before anything expensive starts.

Hydra stops at its first error and knows no nearest match. So the overrides are checked one by one first, what is
left is composed, and the composed config is checked as a whole: the user gets every error in one message.
"""

from __future__ import annotations

import copy
import difflib
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from registries.plugins import import_plugins
from registries.registry import UserError, defaults, nearest, parameters

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
LISTS = ("recovery",)  # groups that take a list of options


def compose(overrides: Sequence[str], config_name: str = "config") -> DictConfig:
    """The checked config that these overrides make.

    Raises:
        UserError: everything that is wrong with it, in one error.
    """
    start = load_plugins(overrides)
    errors: list[str] = []
    parsed = _parse(overrides, errors)
    swept = [item.input_line for item in parsed if item.is_sweep_override()]
    if swept:
        raise UserError(f"{swept[0]} names several values: one config holds one; a sweep is started with -m")
    cfg = _compose(parsed, config_name, start, errors)
    if cfg is not None:
        errors += check(cfg)
    if errors:
        raise UserError(dict.fromkeys(errors))
    return cfg


def check(cfg: DictConfig) -> list[str]:
    """Everything that is wrong with a composed config."""
    from studies.schema import config_errors

    try:
        return config_errors(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        return [f"{error.full_key} needs a value: set {error.full_key}=..."]
    except OmegaConfBaseException as error:
        return [str(error).split("\n")[0]]


class CommandLine(NamedTuple):
    """A command line that was checked.

    Attributes:
        overrides: to hand to Hydra.
        sweeping: whether it is a sweep: asked for, or because the experiment is one.
        devices: that every job computes on, each with a process of its own.
    """

    overrides: list[str]
    sweeping: bool
    devices: int


def check_command_line(overrides: Sequence[str], multirun: bool, config_name: str) -> CommandLine:
    """Check the job, or every job of a sweep, that these overrides ask for.

    Raises:
        UserError: every error of every job, each once.
    """
    start = load_plugins(overrides)
    errors: list[str] = []
    parsed = _parse(overrides, errors)
    axes = _experiment_axes(parsed, config_name, start)
    if axes:
        multirun, start = True, [*start, "hydra.sweeper.params=null"]  # they are given one by one
        given = {item.key_or_group for item in parsed}
        parsed += _parse([line for key, line in axes.items() if key not in given], errors)
    swept, devices = [item for item in parsed if item.is_sweep_override()], set()
    if swept and not multirun:
        line = swept[0].input_line
        errors.append(f"{line} names several values: add -m to sweep over them, or quote a list as [a,b]")
    else:
        known: dict[tuple[str, ...], DictConfig] = {}
        for job in _jobs(parsed) if multirun else [parsed]:
            cfg = _compose(job, config_name, start, errors, known)
            if cfg is not None:
                errors += check(cfg)
                devices.add(cfg.trainer.devices)
    if len(devices) > 1:
        errors.append(f"trainer.devices={sorted(devices)}: the jobs of a sweep share their processes; give one number")
    if errors:
        raise UserError(dict.fromkeys(errors))
    swept_groups = {item.package or item.key_or_group for item in swept}
    return CommandLine([*(_in_sweep(item, swept_groups) for item in parsed), *start], multirun, *devices)


def _experiment_axes(parsed: Sequence[Override], config_name: str, start: Sequence[str]) -> dict[str, str]:
    """Key -> override of what the experiment that was asked for sweeps over (its `hydra.sweeper.params`)."""
    asked = {item.key_or_group: item for item in parsed}
    if "experiment" not in asked:
        return {}
    swept = [item.input_line for key in ("experiment", "size") if (item := asked.get(key)) and item.is_sweep_override()]
    if swept:
        raise UserError(f"{swept[0]}: an experiment is a sweep of its own; run one at a time")
    size = [item.input_line for item in parsed if item.key_or_group.split(".")[0] in ("experiment", "size")]
    with _hydra(), suppress(HydraException, OmegaConfBaseException):  # what is wrong is told with all other errors
        cfg = hydra_compose(config_name, [*start, *size], return_hydra_config=True)
        axes = cfg.hydra.sweeper.params or {}
        return {key: f"{key}={_choices(axes[key])}" for key in axes}
    return {}


def _choices(values: Any) -> str:
    return ",".join(map(str, values)) if OmegaConf.is_list(values) else str(values)


def _in_sweep(item: Override, swept: set[str]) -> str:
    """An override, as a sweep of one value where it sets a key of a swept group.

    Hydra composes a sweep's config without what is swept first: there, `replacement.depth=4` would be an unknown key
    beside `replacement=toroidal,other`.
    """
    if item.is_sweep_override() or item.is_delete() or item.key_or_group.split(".")[0] not in swept:
        return item.input_line
    key, _, value = item.input_line.partition("=")
    return f"{key}=choice({value})"


def load_plugins(overrides: Sequence[str]) -> list[str]:
    """Import the plugins that the overrides name, and give each component without a YAML its config group option.

    Returns:
        Hydra overrides to be added: the search path of plugins with a `conf/` folder of their own.
    """
    modules: list[str] = []
    for line in overrides:
        if line.lstrip("+").startswith("plugins="):
            with suppress(HydraException):  # what cannot be read is told with all other errors
                value = OverridesParser.create().parse_override(line).value()
                modules = value if isinstance(value, list) else [value]
    folders = import_plugins(modules)
    if modules or folders:
        _store_options(folders)
    return [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in folders)}]"] if folders else []


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


def _parse(overrides: Sequence[str], errors: list[str]) -> list[Override]:
    parser, parsed = OverridesParser.create(), []
    for line in overrides:
        try:
            parsed.append(parser.parse_override(line))
        except HydraException as error:
            errors.append(f"cannot read {line!r}: {str(error).splitlines()[0]}; quote values with commas or brackets")
    return parsed


def _jobs(parsed: Sequence[Override]) -> Iterator[list[Override]]:
    """The jobs of a sweep: every combination of the swept values (of a range that a sweeper draws from, its ends).

    Of the seeds, which nothing else depends on, each is in one job; in all others it is the first.
    """
    parser, choices, seeds = OverridesParser.create(), [], []
    for item in parsed:
        if item.is_discrete_sweep():
            lines = [f"{item.get_key_element()}={value}" for value in item.sweep_string_iterator()]
        elif item.is_sweep_override():
            interval = item.value()
            lines = [f"{item.get_key_element()}={value}" for value in (interval.start, interval.end)]
        else:
            lines = [item.input_line]
        if item.key_or_group == "seed":
            lines, *seeds = [[line] for line in lines]
        choices.append(lines)
    for lines in itertools.product(*choices):
        yield parser.parse_overrides(list(lines))
    for seed in seeds:
        yield parser.parse_overrides([*(lines[0] for lines in choices), *seed])


def _compose(
    parsed: Sequence[Override],
    config_name: str,
    start: Sequence[str],
    errors: list[str],
    known: dict[tuple[str, ...], DictConfig] | None = None,
) -> DictConfig | None:
    """Compose what can be; whatever cannot is told in `errors`, and None is returned if nothing is left to check.

    `start` are overrides that need no check. `known` keeps what was composed for other jobs of a sweep: Hydra
    takes 60 ms, setting a value in a copy 5 ms.
    """
    known = {} if known is None else known

    def composed(*overrides: str) -> DictConfig:
        if overrides not in known:
            known[overrides] = hydra_compose(config_name, list(overrides), return_hydra_config=True)
        return known[overrides]

    with _hydra() as loader:
        try:
            groups, values = [], []
            for item in parsed:
                (groups if _is_group(item, loader) else values).append(item)
            good, undecided = [], set()  # groups of which no option is left to compare the keys with
            for item in groups:
                allowed = loader.get_group_options(item.key_or_group, ObjectType.CONFIG, config_name, list(start))
                option, found = _option(item, allowed)
                errors.extend(found)
                if option is None:
                    undecided.add(item.package or item.key_or_group)
                else:
                    good.append(option)
            base, changes = composed(*start, *good), []
            for item in values:
                if item.key_or_group.split(".")[0] in undecided:
                    continue
                found = _value_errors(item, base)
                errors.extend(found)
                if not found:
                    changes.append(item)
            if all(map(_only_sets, changes)):
                return _with_values(base, changes)
            return hydra_compose(config_name, [*start, *good, *(item.input_line for item in changes)])
        except (HydraException, OmegaConfBaseException) as error:
            errors.append(_reason(error))
            return None


def _only_sets(item: Override) -> bool:
    """Whether an override gives a value to a key of ours that is there, and does nothing else."""
    return item.type == OverrideType.CHANGE and item.key_or_group.split(".")[0] != "hydra"


def _with_values(base: DictConfig, changes: Sequence[Override]) -> DictConfig:
    """A copy of a composed config with these values, set as Hydra sets them."""
    cfg = copy.deepcopy(base)
    with open_dict(cfg):
        del cfg["hydra"]
    for item in changes:
        OmegaConf.update(cfg, item.key_or_group, item.value(), merge=True)
    return cfg


def _reason(error: BaseException) -> str:
    """Hydra's message on one line, or its cause's where it has none."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return text or (_reason(error.__cause__) if error.__cause__ else type(error).__name__)


@contextmanager
def _hydra() -> Iterator[ConfigLoader]:
    """Hydra, initialised on our config folder; what was initialised before is put back."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


def _is_group(item: Override, loader: ConfigLoader) -> bool:
    key = item.key_or_group
    return (
        key in loader.list_groups("")
        or "@" in item.get_key_element()
        or ("/" in key and key.rpartition("/")[2] in loader.list_groups(key.rpartition("/")[0]))
    )


def _option(item: Override, allowed: Sequence[str]) -> tuple[str | None, list[str]]:
    """The override of a group as it can be composed (with the nearest option for an unknown one), and its errors."""
    group, option = item.key_or_group, item.value()
    if item.is_delete():
        return None, [_deletion_error(item)]
    if isinstance(option, list):
        return _options(item, option, allowed)
    if option in allowed:
        return item.input_line, []
    error = f"{group}={option} is no option{nearest(option, allowed)} Allowed: {', '.join(allowed)}"
    close = difflib.get_close_matches(str(option), allowed, n=1)
    return (f"{item.get_key_element()}={close[0]}" if close else None), [error]


def _options(item: Override, options: list, allowed: Sequence[str]) -> tuple[str | None, list[str]]:
    """As `_option`, where a group takes several options in order (the stages of a recovery)."""
    group = item.key_or_group
    if group not in LISTS:
        return None, [f"{item.input_line}: {group} takes one option. Allowed: {', '.join(allowed)}"]
    allowed = [option for option in allowed if option != "none"]  # that stands alone
    twice = {option for option in options if options.count(option) > 1}
    if twice:
        return None, [f"{item.input_line} names {sorted(twice)[0]} twice; name each once"]
    wrong = [option for option in options if option not in allowed]
    errors = [
        f"{group}: {option} is no option{nearest(option, allowed)} Allowed: {', '.join(allowed)}" for option in wrong
    ]
    good = [option for option in options if option not in wrong]
    return f"{item.get_key_element()}=[{','.join(good)}]", errors


def _value_errors(item: Override, base: DictConfig) -> list[str]:
    key = item.key_or_group
    if item.is_delete():
        return [_deletion_error(item)]
    if key == "source":
        return [f"{item.input_line}: the second model is chosen by model@source={item.input_line.partition('=')[2]}"]
    if item.is_add() or item.is_force_add() or key.split(".")[0] == "hydra":
        return []
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(base, parent) if parent else base
    if isinstance(node, DictConfig) and last in list(node):  # `last in node` is false where a value is still missing
        return []
    keys = [name for name in _keys(base) if not name.startswith("hydra")]
    siblings = [str(name) for name in node if name != "hydra"] if isinstance(node, DictConfig) else []
    near = nearest(key, keys)
    where = f" Allowed in {parent or 'the config'}: {', '.join(siblings)}" if siblings else ""
    return [f"there is no key {key!r} in this config{near}{where}"]


def _deletion_error(item: Override) -> str:
    return f"{item.input_line}: nothing can be taken out of the config; give {item.key_or_group} another value"


def _keys(cfg: Any, prefix: str = "") -> list[str]:
    keys = []
    for name in cfg:
        keys.append(f"{prefix}{name}")
        node = cfg._get_node(name)
        if isinstance(node, DictConfig) and not node._is_none():
            keys += _keys(node, f"{prefix}{name}.")
    return keys
