"""Third parties' components: modules that register something when they are imported."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from registries.registry import UserError


def plugin_names() -> list[str]:
    """The modules of installed packages that bring components: the entry-point group `graftlab.components`."""
    return [point.module for point in entry_points(group="graftlab.components")]


def import_plugins(modules: Sequence[str]) -> list[Path]:
    """Import the modules that the entry-point group `graftlab.components` names, then these modules.

    Returns:
        The `conf/` folders beside all of these modules, for Hydra's search path.

    Raises:
        UserError: a module cannot be imported.
    """
    folders = []
    for name in [*plugin_names(), *modules]:
        try:
            module = import_module(name)
        except ImportError as error:
            raise UserError(f"plugins: cannot import {name!r} ({error}); is its folder on PYTHONPATH?") from error
        except (Exception, SystemExit) as error:  # whatever a stranger's module does when it is imported
            raise UserError(f"plugins: {name!r} fails to import: {type(error).__name__}: {error}") from error
        if getattr(module, "__file__", None) and (folder := Path(module.__file__).parent / "conf").is_dir():
            folders.append(folder)
    return folders
