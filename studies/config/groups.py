"""The config groups: what is registered in them, which keys all their options share, and whose study they make.

Everything that goes through the groups reads this table: composing, checking, the code that counts for a run, the names
of runs, the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from data_modules import DATASETS, TOKENIZERS
from data_modules.tokenizer_settings import OWN
from lightning_modules import OPTIMIZERS
from lightning_modules.config import OPTIONS, SECTIONS, TWO_MODEL_MODULES, Config
from registries import ADAPTERS, ATTENTION, COMPRESSORS, EXPANSIONS, MODELS, PLACEMENTS
from registries.option import Option
from registries.registry import Registry
from studies.run.trackers import TRACKERS

WIDTHS = ("source_width", "target_width")


class Group(NamedTuple):
    """A config group, of which one option is chosen.

    Attributes:
        settings: the keys that all options share.
        registry: of the components; None where the options have none.
        supplied: what code gives a component when it is built, beside what the config says.
        package: the folder of the components, where what they do changes the numbers of a model.
        study: the module of `studies` that runs the study when an option is chosen; None: that of one model.
        checks: the module with `<group>_errors`, which tells what is wrong with the group.
        reads: what of the config this looks at beside the group.
        absent: the option that stands for no component.
    """

    settings: type[Option]
    registry: Registry | None = None
    supplied: tuple[str, ...] = ()
    package: str | None = None
    study: str | None = None
    checks: str = "studies.config.component_checks"
    reads: tuple[str, ...] = ()
    absent: str = "none"


# In the order in which they are checked: what a check reads must be right.
GROUPS = {
    "tracking": Group(OPTIONS["tracking"], TRACKERS, ("experiment",)),
    "trainer": Group(OPTIONS["trainer"]),
    "dataset": Group(OPTIONS["dataset"], DATASETS),
    "optimizer": Group(OPTIONS["optimizer"], OPTIMIZERS, ("parameters", "tokens_per_step")),
    "tokenizer": Group(OPTIONS["tokenizer"], TOKENIZERS, ("texts",), reads=("dataset", "model"), absent=OWN),
    "model": Group(OPTIONS["model"], MODELS, ("cache_dir", "num_tokens"), reads=("tokenizer", "cache_dir")),
    "source": Group(  # chosen by model@source
        OPTIONS["source"],
        MODELS,
        supplied=("cache_dir", "num_tokens"),
        checks="studies.config.two_model_checks",
        reads=(*TWO_MODEL_MODULES, "cache_dir"),
    ),
    "replacement": Group(
        OPTIONS["replacement"],
        ATTENTION,
        supplied=("shape",),
        package="registries/attention",
        reads=("model", "tokenizer", "cache_dir"),
    ),
    "placement": Group(
        OPTIONS["placement"],
        PLACEMENTS,
        supplied=("model", "scores", "variant"),
        package="registries/placements",
        reads=("model", "tokenizer", "cache_dir"),
    ),
    "adapter": Group(
        OPTIONS["adapter"],
        ADAPTERS,
        supplied=WIDTHS,
        package="registries/adapters",
        study="two_models",
        checks="studies.config.two_model_checks",
        reads=("source", "model", "tokenizer", "trainer", "cache_dir"),
    ),
    "compressor": Group(
        OPTIONS["compressor"],
        COMPRESSORS,
        supplied=(*WIDTHS, "tokens"),
        package="registries/compressors",
        study="soft_tokens",
        checks="studies.config.two_model_checks",
        reads=("source", "dataset", "cache_dir"),
    ),
    "expansion": Group(
        OPTIONS["expansion"],
        EXPANSIONS,
        package="registries/expansions",
        checks="studies.config.expansion_checks",
        reads=("model", "tokenizer", "replacement", "placement", "adapter", "compressor", "recovery", "cache_dir"),
    ),
}
OPERATIONS = [key for key, group in GROUPS.items() if group.package is not None]  # what is done to a model
OTHER_SECTIONS = ("recovery", "experiment", "size", *SECTIONS)  # the other keys with keys of theirs


def recipe(cfg: Config) -> Callable[[Any], None]:
    """The function that runs the study of a config: `study_<name>` of the module `studies.<name>`."""
    chosen = (group.study for key, group in GROUPS.items() if group.study and getattr(cfg, key) is not None)
    name = next(chosen, "one_model")
    return getattr(import_module(f"studies.{name}"), f"study_{name}")
