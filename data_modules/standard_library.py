"""The code of the running Python's standard library."""

from __future__ import annotations

import os
import sysconfig
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# Tests, programs, installed packages, and pydoc_data, whose text the dataset `pydoc` reads itself.
EXCLUDED_FOLDERS = {
    "__pycache__", "dist-packages", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests",
    "turtledemo",
}  # fmt: skip


@cache
def modules() -> dict[str, str]:
    """Dotted module name -> its code, in the order of the names; empty modules are left out."""
    root = Path(sysconfig.get_path("stdlib"))
    return {name: code for name, file in sorted(_files(root)) if (code := _read(file))}


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name.isidentifier() and name not in EXCLUDED_FOLDERS]
        for name in names:
            # _sysconfigdata_* holds the paths and flags of the machine that Python was built on.
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                file = Path(folder, name)
                parts = file.relative_to(root).with_suffix("").parts
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


def _read(file: Path) -> str:
    with tokenize.open(file) as stream:  # honours the encoding that the file declares
        return stream.read()
