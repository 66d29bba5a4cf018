"""Tables: the records of .json, .jsonl and .parquet files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_modules.raw_files import kind_of, read_text
from registries.registry import UserError

TABLE_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}

SPACE = re.compile(r"[ \t\r\n]*")


def read_rows(file: Path) -> list[Mapping[str, Any]]:
    """The records of a .json, .jsonl or .parquet file; the types of values come from the file and are never guessed.

    A .json or .jsonl file holds a list of records, or one record after the other; a text in place of a record is a
    record with the column `text`.

    Raises:
        UserError: the file cannot be read, or holds something else than records.
    """
    if kind_of(file) not in TABLE_FORMATS:
        raise UserError(f"{file} holds no table: {', '.join(TABLE_FORMATS)} do")
    if TABLE_FORMATS[kind_of(file)] == "parquet":
        return _read_parquet(file)
    rows = [{"text": value} if isinstance(value, str) else value for value in _read_json(file)]
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise UserError(
                f"{file}: record {index} is no object with named values but {_kind(row)}: write records as "
                '{"column": "text"}, one in each line or all in one list'
            )
    return rows


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns of all records, since the first record may lack some."""
    return list(dict.fromkeys(column for row in rows for column in row))


def as_text(value: Any, column: str, label: str) -> str:
    """The text in a column of the record that `label` names; null gives an empty text.

    Raises:
        UserError: the value is no text.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{label}: column {column!r} holds {_kind(value)}, not text: {_shortened(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise UserError(f"{label}: column {column!r} holds {half}, half of a character, which is no text") from None
    return value


def first_few(messages: Sequence[str], most: int = 5) -> list[str]:
    """The first messages and the number of those left out, since a column may be wrong in every record."""
    left_out = len(messages) - most
    return [*messages[:most], *([f"and {left_out} more of the kind"] if left_out > 0 else [])]


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _read_json(file: Path) -> list[Any]:
    text = read_text(file)
    try:
        values = list(_json_values(text))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as json: {error}") from None
    return values[0] if len(values) == 1 and isinstance(values[0], list) else values


def _json_values(text: str) -> Iterator[Any]:
    """The values that stand one after the other in a text, with any white space between them."""
    decoder, offset = json.JSONDecoder(), SPACE.match(text).end()
    while offset < len(text):
        value, offset = decoder.raw_decode(text, offset)
        yield value
        offset = SPACE.match(text, offset).end()


def _read_parquet(file: Path) -> list[Mapping[str, Any]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as table:
            return table.read().to_pylist()
    except (ArrowException, OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as parquet: {error}") from None
