"""The config groups: what is registered in them, which keys all their options share, and whose study they make.

Everything that goes through the groups reads this table: composing, checking, the code that counts for a run, the names
of runs, the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from data_modules import DATASETS
from data_modules.dataset_settings import DatasetSettings
from lightning_modules import OPTIMIZERS
from lightning_modules.config import Config, TrackingSettings, TrainerSettings
from lightning_modules.optimizers import OptimizerSettings
from registries import ADAPTERS, ATTENTION, COMPRESSORS, MODELS, PLACEMENTS
from registries.registry import Registry
from registries.settings import (
    AdapterSettings,
    CompressorSettings,
    ModelSettings,
    PlacementSettings,
    ReplacementSettings,
)
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
    """

    settings: type
    registry: Registry | None
    supplied: tuple[str, ...] = ()
    package: str | None = None
    study: str | None = None


GROUPS = {
    "model": Group(ModelSettings, MODELS, ("cache_dir",)),
    "source": Group(ModelSettings, MODELS, ("cache_dir",)),  # chosen by model@source
    "replacement": Group(ReplacementSettings, ATTENTION, ("shape",), "registries/attention"),
    "placement": Group(PlacementSettings, PLACEMENTS, ("model", "scores", "variant"), "registries/placements"),
    "adapter": Group(AdapterSettings, ADAPTERS, WIDTHS, "registries/adapters", "two_models"),
    "compressor": Group(CompressorSettings, COMPRESSORS, (*WIDTHS, "tokens"), "registries/compressors", "soft_tokens"),
    "dataset": Group(DatasetSettings, DATASETS),
    "optimizer": Group(OptimizerSettings, OPTIMIZERS, ("parameters",)),
    "trainer": Group(TrainerSettings, None),
    "tracking": Group(TrackingSettings, TRACKERS, ("experiment",)),
}
OPERATIONS = [key for key, group in GROUPS.items() if group.package is not None]  # what is done to a model
SECTIONS = (
    "recovery",
    "experiment",
    "size",
    "samples",
    "activations",
    "communication",
)  # other keys with keys of theirs


def recipe(cfg: Config) -> Callable[[Any], None]:
    """The function that runs the study of a config: `study_<name>` of the module `studies.<name>`."""
    chosen = (group.study for key, group in GROUPS.items() if group.study and getattr(cfg, key) is not None)
    name = next(chosen, "one_model")
    return getattr(import_module(f"studies.{name}"), f"study_{name}")
