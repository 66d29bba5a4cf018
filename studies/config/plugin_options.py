"""Plugins that a command line names, and the config group options of components without a YAML."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override

from lightning_modules import STAGES
from registries.option import CONF
from registries.plugins import import_plugins
from registries.registry import UserError, defaults, parameters
from registries.settings import AdapterTrainingSettings
from studies.config.groups import GROUPS
from studies.config.launchers import prefer_own_options
from studies.config.overrides import read_lines


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
    prefer_own_options()
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
    store = ConfigStore.instance()
    for key, group in GROUPS.items():
        for name in group.registry.names() if group.registry is not None and key != "source" else ():
            if not _has_yaml(key, name, folders):
                node = {"name": name, **_own_keys(group.registry.get(name), group.supplied)}
                store.store(group=key, name=name, node=_with_base(node, _base(key, name)))
    for name in STAGES.names():
        if not _has_yaml("recovery", name, folders):
            node = _own_keys(STAGES.get(name), ("workspace",))
            store.store(group="recovery", name=name, node=node, package=f"recovery.{name}")


def _has_yaml(group: str, name: str, folders: Sequence[Path]) -> bool:
    return any((folder / group / f"{name}.yaml").is_file() for folder in (CONF, *folders))


def _base(group: str, name: str) -> str:
    """The file of conf/base that an option builds on."""
    from registries.adapters.adapter import is_trained

    trained = group == "adapter" and is_trained(name)
    return (AdapterTrainingSettings if trained else GROUPS[group].settings).base


def _with_base(node: dict[str, Any], base: str) -> dict[str, Any]:
    return {"defaults": [f"/base/{base}@_here_", "_self_"], **node}


def _own_keys(component: Any, supplied: Sequence[str]) -> dict[str, Any]:
    """Key -> default of what a component takes from the config; ??? where it must be given."""
    keys = [key for key in parameters(component) if key not in supplied]
    return {key: defaults(component).get(key, "???") for key in keys}
