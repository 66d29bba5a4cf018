"""Local text files and folders -> documents by split."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from data_modules.documents import Document, halve, split_documents
from registries.registry import UserError, is_there

log = logging.getLogger(__name__)

T = TypeVar("T")  # a `Document`, or what else has a name and a text

TEXT_SUFFIXES = (".txt", ".md", ".text", ".tokens", ".raw")
TABLE_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}

DOCUMENT_LENGTH = 4000  # characters, about 1,000 tokens
MIN_DOCUMENTS = 20  # a shorter text gets shorter documents, so that all three splits get some

# A name such as train.txt, valid-00000-of-00002.parquet or wiki.test.tokens, but not testing.md.
SPLIT_NAME = re.compile(r"(?:^|[._-])(train|training|valid|validation|val|dev|test)(?:[0-9._-]|$)")
SPELLINGS = {"train": "train", "training": "train", "test": "test"}  # all others mean validation

WIKITEXT_HEADING = re.compile(r"^ ?= (?!=)(.+) = ?\r?\n?$")
# What may separate documents, best first: paragraphs, lines, and words for a text that is one line.
SEPARATORS = (r"\n[ \t\r]*\n", r"\n", r"\s")


def check_path(path: str | None) -> list[str]:
    """A message where a path is given that is not there."""
    if path is None or is_there(path):
        return []
    return [f"dataset.path={path!r} does not exist (looked from {Path.cwd()}): give an existing file or folder"]


def read_path(
    path: str, field: str | Sequence[str] = "text", rows_are_lines: bool = False, encoding: str = "utf-8"
) -> dict[str, list[Document]]:
    """The documents of a file or folder, by split.

    A folder with files named for train and for validation or test keeps these splits (the missing one is carved from
    the other); everything else is split by document.

    Args:
        field: the column that holds the text in .json, .jsonl and .parquet files; of several, a line for each.
        rows_are_lines: rows of such files are lines of WikiText articles rather than documents.
        encoding: of plain text files.

    Raises:
        UserError: nothing there to read, a file in another encoding, no such column.
    """
    return by_split(path, lambda file, root: read_file(file, root, field, rows_are_lines, encoding))


def by_split(
    path: str, read: Callable[[Path, Path], list[T]], suffixes: Sequence[str] = (*TEXT_SUFFIXES, *TABLE_FORMATS)
) -> dict[str, list[T]]:
    """What `read(file, root)` gives for the files (with these suffixes) of a file or folder, by split; see `read_path`.

    Raises:
        UserError: nothing there to read.
    """
    errors = check_path(path)
    if errors:
        raise UserError(errors)
    root = Path(path).expanduser()
    files = _files(root, suffixes)
    named = _named_splits(root, files)

    def read_all(some: list[Path]) -> list[T]:
        return [document for file in some for document in read(file, root)]

    if "train" not in named or len(named) < 2:
        return split_documents(read_all(files))
    unused = sorted(set(files) - {file for some in named.values() for file in some})
    if unused:
        log.warning("%s: left out, as the name tells no split: %s", path, ", ".join(file.name for file in unused))
    splits = {split: read_all(some) for split, some in named.items()}
    if "validation" not in splits or "test" not in splits:
        held_out = splits.get("validation") or splits.get("test") or []
        splits["validation"], splits["test"] = halve(held_out)
    return splits


def read_file(
    file: Path, root: Path, field: str | Sequence[str] = "text", rows_are_lines: bool = False, encoding: str = "utf-8"
) -> list[Document]:
    """The documents of one file, in order. Names start with the file's path below `root`."""
    label = file.relative_to(root).as_posix() if file != root else file.name
    if file.suffix.lower() in TABLE_FORMATS:
        rows = _read_columns(file, [field] if isinstance(field, str) else field)
        if rows_are_lines:
            return list(wikitext_articles(rows, label))
        return [Document(f"{label}:{index}", row) for index, row in enumerate(rows) if row]
    return cut_text(_read_text(file, encoding), label)


def cut_text(text: str, label: str) -> list[Document]:
    """A text as documents; put together in order they are the text.

    WikiText headings start documents where there are at least three of them; else paragraphs are gathered into
    documents of some 4,000 characters, or lines where there are too few paragraphs.
    """
    articles = list(wikitext_articles(_pieces(text, r"\n"), label))
    if len(articles) >= 3:
        return articles
    length = min(DOCUMENT_LENGTH, len(text) // MIN_DOCUMENTS)
    for separator in SEPARATORS:
        texts = _join_short(_pieces(text, separator), length)
        if len(texts) >= 3:
            break
    return [Document(f"{label}:{index}", part) for index, part in enumerate(texts)]


def wikitext_articles(lines: Iterable[str], label: str) -> Iterator[Document]:
    """Lines of WikiText -> articles, named by their titles.

    A top-level heading ` = Title = ` after a blank line starts an article; blank lines before the first belong to it.
    """
    name, gathered, after_blank = label, [], True
    for line in lines:
        heading = WIKITEXT_HEADING.match(line) if after_blank else None
        if heading:
            if any(part.strip() for part in gathered):
                yield Document(name, "".join(gathered))
                gathered = []
            name = heading.group(1)
        gathered.append(line)
        after_blank = not line.strip()
    if gathered:
        yield Document(name, "".join(gathered))


def _pieces(text: str, separator: str) -> list[str]:
    """The text cut after every match of the separator."""
    cuts = {0, len(text), *(match.end() for match in re.finditer(separator, text))}
    return [text[start:end] for start, end in pairwise(sorted(cuts))]


def _join_short(pieces: Iterable[str], length: int) -> list[str]:
    """Neighbouring pieces joined until they have `length` characters."""
    joined: list[list[str]] = []
    so_far = length
    for piece in pieces:
        if so_far >= length:
            joined.append([])
            so_far = 0
        joined[-1].append(piece)
        so_far += len(piece)
    return ["".join(parts) for parts in joined]


def _files(root: Path, suffixes: Sequence[str]) -> list[Path]:
    if root.is_file():
        return [root]
    files = sorted(
        file
        for file in root.rglob("*")
        if file.suffix.lower() in suffixes
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(root).parts)
    )
    if not files:
        raise UserError(f"dataset.path={str(root)!r} holds no file that can be read: {', '.join(suffixes)} are")
    return files


def _named_splits(root: Path, files: list[Path]) -> dict[str, list[Path]]:
    """The files whose name, or a folder's on the way to them, tells a split."""
    by_split: dict[str, list[Path]] = {}
    for file in files:
        parts = file.relative_to(root).parts
        match = next(filter(None, (SPLIT_NAME.search(part.lower()) for part in parts)), None)
        if match:
            by_split.setdefault(SPELLINGS.get(match.group(1), "validation"), []).append(file)
    return by_split


def _read_text(file: Path, encoding: str) -> str:
    try:
        return file.read_bytes().decode(encoding)  # read_text() would turn \r\n into \n
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not {encoding} text: byte 0x{error.object[error.start]:02x} at offset {error.start}. "
            "Name its encoding, for example dataset=text dataset.encoding=cp1252"
        ) from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None


def _read_columns(file: Path, fields: Sequence[str]) -> list[str]:
    """The rows of some columns, a line for each column; an empty (null) cell is an empty text."""
    rows = read_rows(file)
    columns = list(rows[0]) if rows else []
    for field in fields:
        if field not in columns:
            raise UserError(
                f"{file} has no column {field!r}, only: {', '.join(columns) or '(none)'}. dataset=text reads any one, "
                "named by dataset.field"
            )
        wrong = next((row[field] for row in rows if not isinstance(row[field] or "", str)), None)
        if wrong is not None:
            raise UserError(
                f"{file}: column {field!r} holds {type(wrong).__name__}, not text. dataset=text reads another one, "
                "named by dataset.field"
            )
    return ["\n".join(row[field] or "" for field in fields) for row in rows]


def read_rows(file: Path) -> list[Mapping[str, Any]]:
    """The rows of a .json, .jsonl or .parquet file.

    Raises:
        UserError: it cannot be read.
    """
    from datasets import load_dataset

    if file.suffix.lower() not in TABLE_FORMATS:
        raise UserError(f"{file} holds no table: {', '.join(TABLE_FORMATS)} do")
    data_format = TABLE_FORMATS[file.suffix.lower()]
    try:  # streaming, as otherwise a copy of the file is left in the Hugging Face cache
        return list(load_dataset(data_format, data_files=str(file), split="train", streaming=True))
    except Exception as error:  # whatever the parsers of the two formats raise
        raise UserError(f"{file} cannot be read as {data_format}: {error}") from error
