"""Tables: the records of .json, .jsonl and .parquet files, as they were written."""

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
    """The records of a .json, .jsonl or .parquet file. What a value is stands in the file and is not guessed.

    A .json or .jsonl file holds a list of records, or one record after the other; a text alone is a record with the
    column `text`.

    Raises:
        UserError: it cannot be read, or holds something else than records.
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
    """The columns of all records: one may come late."""
    return list(dict.fromkeys(column for row in rows for column in row))


def as_text(value: Any, column: str, place: str) -> str:
    """The text in a column of the record at `place`; nothing (null) is an empty text.

    Raises:
        UserError: it is no text.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{place}: column {column!r} holds {_kind(value)}, not text: {_shortened(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise UserError(f"{place}: column {column!r} holds {half}, half of a character, which is no text") from None
    return value


def first_few(messages: Sequence[str], most: int = 5) -> list[str]:
    """The first messages, and how many more there are: a column may be wrong in every record."""
    more = [f"and {len(messages) - most} more of the kind"] if len(messages) > most else []
    return [*messages[:most], *more]


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
    """The values that stand one after the other in a text, in lines of their own or not."""
    decoder, place = json.JSONDecoder(), SPACE.match(text).end()
    while place < len(text):
        value, place = decoder.raw_decode(text, place)
        yield value
        place = SPACE.match(text, place).end()


def _read_parquet(file: Path) -> list[Mapping[str, Any]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as table:
            return table.read().to_pylist()
    except (ArrowException, OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as parquet: {error}") from None
