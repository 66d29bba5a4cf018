"""Plugins that a command line names, and the config group options of components without a YAML."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override

from registries.plugins import import_plugins
from registries.registry import UserError, defaults, parameters
from studies.config.overrides import read_lines

CONF = Path(__file__).resolve().parents[2] / "conf"
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
    sources: list[str] = []
    for item in read_lines(overrides, []):  # what cannot be read is told with all other errors
        if item.key_or_group == "plugins" and _is_texts(item.value()):
            modules = item.value()
        elif item.key_or_group == "plugins" and isinstance(item.value(), str):
            modules = [item.value()]
        elif _is_search_path(item):
            sources = item.value()
    folders = import_plugins(modules)
    if modules or folders:
        _store_options(folders)
    for source in sources:
        if "://" not in source.replace("file://", "") and not Path(source.removeprefix("file://")).is_dir():
            raise UserError(f"hydra.searchpath: {source} is no folder (looked from {Path.cwd()})")
    sources = [*sources, *(f"file://{folder}" for folder in folders)]
    return [f"hydra.searchpath=[{','.join(map(_as_item, sources))}]"] if sources else []


def _as_item(text: str) -> str:
    """A text in a list, in quotes where it needs them."""
    return text if all(char.isascii() and (char.isalnum() or char in "/.:_-") for char in text) else repr(text)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_search_path(item: Override) -> bool:
    return item.key_or_group == "hydra.searchpath" and _is_texts(item.value())


def without_search_path(lines: Sequence[str]) -> list[str]:
    """Override lines without the search path, which stands in what `load_plugins` returns."""
    sources = [item.input_line for item in read_lines(lines, []) if _is_search_path(item)]
    return [line for line in lines if line not in sources]


def _store_options(folders: Sequence[Path]) -> None:
    """Put a group option made from its signature into Hydra's ConfigStore for every component that has no YAML."""
    from data_modules import DATASETS
    from data_modules.block_settings import BlockSettings
    from lightning_modules import OPTIMIZERS, STAGES, options
    from registries import ADAPTERS, ATTENTION, COMPRESSORS, MODELS, PLACEMENTS
    from registries.adapters.adapter import is_trained

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
