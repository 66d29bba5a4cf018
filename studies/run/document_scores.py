"""The scores of a run by document, from which any two runs on the same data are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from registries.registry import UserError
from studies.run.files import read_checked

DOCUMENTS = "documents.json"


def read_documents(folder: Path, prefix: str) -> list[tuple[float, int]]:
    """The documents' scores that a run recorded under a prefix.

    Raises:
        UserError: there are none, or the file is damaged.
    """
    file = folder / DOCUMENTS
    recorded = read_checked(file) if file.is_file() else {}
    if not _are_documents(recorded.get(prefix)):
        raise UserError(f"{file} has no scores by document under {prefix!r}: remove {folder} and run the study again")
    return recorded[prefix]


def _are_documents(value: Any) -> bool:
    """Whether this is a list of pairs of numbers: summed nll, scored tokens."""
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(number, (int, float)) for number in pair)
        for pair in value
    )
