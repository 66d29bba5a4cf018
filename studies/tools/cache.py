"""What the cache holds, and how to empty it.

python -m studies.tools.cache                       sizes by kind
python -m studies.tools.cache clear activations     remove one kind: activations, scores, tokens, ...
python -m studies.tools.cache clear all
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from registries.registry import UserError, nearest


def sizes(folder: Path) -> dict[str, int]:
    """Kind of content -> bytes."""
    kinds = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return {kind.name: sum(file.stat().st_size for file in kind.rglob("*") if file.is_file()) for kind in kinds}


def clear(folder: Path, kind: str) -> int:
    """Remove a kind of content, or `all`. Returns the bytes that were freed.

    Raises:
        UserError: there is no such kind.
    """
    present = sizes(folder)
    if kind != "all" and kind not in present:
        raise UserError(
            f"the cache {folder} has no {kind!r}{nearest(kind, present)} Allowed: all, {', '.join(present)}"
        )
    chosen = present if kind == "all" else {kind: present[kind]}
    for name in chosen:
        shutil.rmtree(folder / name)
    return sum(chosen.values())


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    folder = Path(os.environ.get("GRAFTLAB_CACHE") or "~/.cache/graftlab").expanduser()
    if not arguments:
        for kind, size in sizes(folder).items():
            print(f"{size / 1e6:10,.1f} MB  {folder / kind}")
    elif len(arguments) == 2 and arguments[0] == "clear":
        print(f"freed {clear(folder, arguments[1]) / 1e6:,.1f} MB in {folder}")
    else:
        raise UserError(f"cannot read {' '.join(arguments)!r}: clear <kind>, clear all, or nothing to see the sizes")


if __name__ == "__main__":
    from studies.tools.command import run_tool

    run_tool(lambda *arguments: main(arguments), __doc__)
