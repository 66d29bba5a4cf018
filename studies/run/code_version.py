"""The code that a number depends on, by what it does: comments, docstrings and layout do not count."""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_modules.config import Config
from registries.plugins import plugin_names
from studies.config.groups import GROUPS, OPERATIONS

ROOT = Path(__file__).resolve().parents[2]

COMPUTING_LIBRARIES = ("torch", "transformers", "peft", "lightning")  # that compute

# What computes with a model, whatever is done to it. Datasets are left out: their tokens count themselves.
PACKAGES = ("registries", "lightning_modules", "data_modules")
LEFT_OUT = ("data_modules/datasets", *(GROUPS[key].package for key in OPERATIONS))
# Of `studies`, these decide which numbers a run measures; the other files show, keep or start them.
STEPS = ("train.py", "studies/*.py", "studies/run/ratios.py", "studies/run/scores.py")
NO_STEPS = ("progress.py", "sweep.py", "memory_retry.py")


def model_code(cfg: Config, root: Path = ROOT) -> str:
    """Hash of what computes the numbers of an untouched model: this project's code, plugins and libraries."""
    return _hash(root, tuple(_model_files(root)), tuple(cfg.plugins or ()))


def run_code(cfg: Config, root: Path = ROOT) -> str:
    """Hash of what computes the numbers of a run: as `model_code`, with the studies and the components that it uses."""
    components = [f"{GROUPS[key].package}/**/*.py" for key in OPERATIONS if getattr(cfg, key) is not None]
    files = [file for pattern in (*STEPS, *components) for file in root.glob(pattern) if file.name not in NO_STEPS]
    return _hash(root, (*_model_files(root), *files), tuple(cfg.plugins or ()))


@cache
def revision(root: Path = ROOT) -> dict[str, Any] | None:
    """The commit of this project's code, and whether files have changed since; None outside a Git repository."""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(_git(root, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):  # no Git here, or no repository
        return None


def _git(root: Path, *arguments: str) -> str:
    line = ["git", "-C", str(root), *arguments]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()


def _model_files(root: Path) -> Iterator[Path]:
    for package in PACKAGES:
        for file in (root / package).rglob("*.py"):
            left_out = any(file.is_relative_to(root / folder) for folder in LEFT_OUT)
            if not left_out or file.name == "__init__.py":
                yield file


def _hash(root: Path, files: tuple[Path, ...], plugins: tuple[str, ...]) -> str:
    state = {(file.relative_to(root).as_posix(), _meaning(file)) for file in files}
    state |= {(f"{file.parent.name}/{file.name}", _meaning(file)) for file in plugin_files([*plugin_names(), *plugins])}
    libraries = {name: version(name) for name in COMPUTING_LIBRARIES}
    return hashlib.sha256(json.dumps([sorted(state), libraries]).encode()).hexdigest()[:16]


@cache
def _meaning(file: Path) -> str:
    """Hash of what a source file does; as it was first seen, since what was imported is what runs in this process."""
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def plugin_files(modules: Sequence[str]) -> set[Path]:
    """The source files of plugins and of what they import of their own: not this project's, and no library's."""
    own = {name.partition(".")[0]: True for name in modules}  # top-level module -> whether it is a plugin's
    files, waiting = set(), list(modules)
    while waiting:
        name = waiting.pop()
        top = name.partition(".")[0]
        if top not in own:
            own[top] = _is_own(top)
        file = _source(name) if own[top] else None
        if file is None or file in files:
            continue
        files.add(file)
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        waiting += _imports(file, package)
    return files


def _source(name: str) -> Path | None:
    try:
        spec = find_spec(name)
    except (ImportError, ValueError, AttributeError):  # an attribute of a module, not a module
        return None
    origin = Path(spec.origin) if spec is not None and spec.origin else None
    return origin.resolve() if origin is not None and origin.suffix == ".py" else None


def _is_own(top: str) -> bool:
    """Whether a top-level module is neither this project's nor a library's."""
    if top in (*PACKAGES, "studies") or top in sys.stdlib_module_names:
        return False
    file = _source(top)
    return file is not None and not {"site-packages", "dist-packages"} & {*file.parts}  # of whichever environment


def _imports(file: Path, package: str) -> Iterator[str]:
    """The names of modules that a file may import, with the packages that they are in."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
            base = base if node.level else node.module
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))
