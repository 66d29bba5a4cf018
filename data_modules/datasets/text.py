"""Local files."""

from __future__ import annotations

from data_modules import DATASETS
from data_modules.documents import Document
from data_modules.text_files import check_path, read_path
from registries.registry import UserError


def _check(path: str | None) -> list[str]:
    if path is None:
        return ["dataset 'text' needs a local file or folder: set dataset.path"]
    return check_path(path)


@DATASETS.register("text", check=_check)
def text(path: str | None = None, field: str = "text") -> dict[str, list[Document]]:
    """A local text file or folder; see `data_modules.text_files.read_path` for what is read and how it is split.

    Args:
        path: .txt, .md, .text, .json, .jsonl or .parquet, or a folder of these.
        field: the column that holds the text in .json, .jsonl and .parquet.
    """
    if path is None:
        raise UserError(_check(path))
    return read_path(path, field)
