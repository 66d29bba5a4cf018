"""Local files."""

from __future__ import annotations

from data_modules import DATASETS
from data_modules.documents import Document
from data_modules.text_files import check_path, read_path
from registries.registry import UserError


def _check(path: str | None, encoding: str) -> list[str]:
    errors = ["dataset 'text' needs a local file or folder: set dataset.path"] if path is None else check_path(path)
    try:
        "".encode(encoding)
    except (LookupError, UnicodeError):  # no codec of that name, or one that is not for text, such as hex
        errors.append(f"dataset.encoding={encoding} is not known. Allowed: utf-8, cp1252, latin-1, utf-16, ...")
    return errors


@DATASETS.register("text", check=_check)
def text(path: str | None = None, field: str = "text", encoding: str = "utf-8") -> dict[str, list[Document]]:
    """A local text file or folder; `data_modules.text_files.read_path` tells how it is read and split.

    Args:
        path: .txt, .md, .text, .json, .jsonl (compressed or not) or .parquet, or a folder of these.
        field: the column that holds the text in .json, .jsonl and .parquet.
        encoding: of plain text files that have no byte-order mark.
    """
    if path is None:
        raise UserError(_check(path, encoding))
    return read_path(path, field, encoding=encoding)
