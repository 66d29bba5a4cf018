"""Local text files and folders -> documents by split."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from data_modules.documents import Document, halve, named_by_content, split_documents
from data_modules.raw_files import files_below, kind_of, read_text
from data_modules.tables import TABLE_FORMATS, as_text, columns_of, first_few, read_rows
from registries.registry import UserError, is_there

log = logging.getLogger(__name__)

T = TypeVar("T")  # a `Document`, or what else has a name and a text

TEXT_SUFFIXES = (".txt", ".md", ".text", ".tokens", ".raw")
# What stands beside tables and is no data; so is every .md there.
DOCUMENTATION = ("readme", "license", "licence", "copying", "notice", "authors", "changelog", "citation")
TABLE_DOCUMENTATION = ("dataset_info.json", "dataset_infos.json")  # of the Hugging Face library

DOCUMENT_LENGTH = 4000  # characters, about 1,000 tokens
MIN_DOCUMENTS = 20  # a shorter text gets shorter documents, so that all three splits get some
SHORTEST = 20  # characters, of a document that is cut where nothing separates

# A name such as train.txt, valid-00000-of-00002.parquet or wiki.test.tokens, but not testing.md.
SPLIT_NAME = re.compile(r"(?:^|[._-])(train|training|valid|validation|val|dev|test)(?:[0-9._-]|$)")
SPELLINGS = {"train": "train", "training": "train", "test": "test"}  # all others mean validation

WIKITEXT_HEADING = re.compile(r"^ ?= (?!=)(.+) = ?\r?\n?$")
# What may separate documents, best first: paragraphs, lines, and for a text that is one line sentences (with or without
# spaces between them) and words.
SEPARATORS = (
    r"\n[ \t\r]*\n",
    r"\n",
    r"[.!?\u2026][\"')\]\u2019\u201d]*\s+|[\u3002\uff01\uff1f\uff0e\uff61][\u300d\u300f\uff09\u2019\u201d]*",
    r"\s",
)


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
    the other); everything else is split by document. What a document holds decides its split (of a WikiText article,
    its title), so that the same file is split alike under any name. No text is in training and held out.

    Args:
        field: the column that holds the text in .json, .jsonl and .parquet files; of several, a line for each.
        rows_are_lines: rows of such files are lines of WikiText articles rather than documents.
        encoding: of plain text files that have no byte-order mark.

    Raises:
        UserError: nothing there to read, a file in another encoding, no such column.
    """
    splits = by_split(path, lambda file, _: read_file(file, field, rows_are_lines, encoding))
    trained = {document.text for document in splits["train"]}
    for split in ("validation", "test"):
        kept = [document for document in splits[split] if document.text not in trained]
        if len(kept) < len(splits[split]):
            left_out = len(splits[split]) - len(kept)
            log.warning("%s: %d %s documents are trained on as well and were left out", path, left_out, split)
            splits[split] = kept
    return splits


def by_split(
    path: str, read: Callable[[Path, Path], list[T]], suffixes: Sequence[str] = (*TEXT_SUFFIXES, *TABLE_FORMATS)
) -> dict[str, list[T]]:
    """What `read(file, root)` gives for the files (with these suffixes) of a file or folder, by split; see `read_path`.

    Linked folders are followed. Beside tables, a README and its like are no data. What is left out is told.

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
    file: Path, field: str | Sequence[str] = "text", rows_are_lines: bool = False, encoding: str = "utf-8"
) -> list[Document]:
    """The documents of one file, in order."""
    if kind_of(file) not in TABLE_FORMATS:
        return cut_text(read_text(file, encoding, "name its encoding: dataset=text dataset.encoding={encoding}"))
    rows = _read_columns(file, [field] if isinstance(field, str) else field)
    if rows_are_lines:
        return list(wikitext_articles(rows))
    filled = [row for row in rows if row.strip("\n")]
    if len(filled) < len(rows):
        log.warning("%s: %d of %d records have no text and were left out", file, len(rows) - len(filled), len(rows))
    return [named_by_content(row) for row in filled]


def cut_text(text: str) -> list[Document]:
    """A text as documents; put together in order they are the text.

    WikiText headings start documents where there are at least three of them; else paragraphs are gathered into
    documents of some 4,000 characters. Where there are too few paragraphs, or one of them is most of the text, lines
    are gathered, else sentences, words or, where nothing separates them, characters.
    """
    articles = list(wikitext_articles(_pieces(text, r"\n")))
    if len(articles) >= 3:
        return articles
    length = min(DOCUMENT_LENGTH, len(text) // MIN_DOCUMENTS)
    for level in range(len(SEPARATORS) + 1):
        texts = _join_short(_cut(text, SEPARATORS[level:], max(SHORTEST, length)), length)
        if len(texts) >= 3 and max(map(len, texts)) <= len(text) / 2:
            break
    return [named_by_content(part) for part in texts]


def wikitext_articles(lines: Iterable[str]) -> Iterator[Document]:
    """Lines of WikiText -> articles, named by their titles; what stands before the first is named by its content.

    A top-level heading ` = Title = ` after a blank line starts an article; blank lines before the first belong to it.
    """
    name, gathered, after_blank = None, [], True
    for line in lines:
        heading = WIKITEXT_HEADING.match(line) if after_blank else None
        if heading:
            if any(part.strip() for part in gathered):
                yield _article(name, gathered)
                gathered = []
            name = heading.group(1)
        gathered.append(line)
        after_blank = not line.strip()
    if gathered:
        yield _article(name, gathered)


def _article(title: str | None, lines: Sequence[str]) -> Document:
    text = "".join(lines)
    return named_by_content(text) if title is None else Document(title, text)


def _cut(text: str, separators: Sequence[str], length: int) -> Iterator[str]:
    """The text cut after every match of the first separator; what is still too long is cut by the next ones.

    Where none is left, it is cut into pieces of `length` characters.
    """
    if not separators:
        yield from (text[start : start + length] for start in range(0, len(text), length))
        return
    for piece in _pieces(text, separators[0]):
        if len(piece) > 2 * DOCUMENT_LENGTH:
            yield from _cut(piece, separators[1:], length)
        else:
            yield piece


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
    there = files_below(root)
    readable = [file for file in there if kind_of(file) in suffixes and file.is_file()]
    if not readable:
        raise UserError(f"dataset.path={str(root)!r} holds no file that can be read: {', '.join(suffixes)} are")
    files = _without_documentation(readable)
    left_out = sorted(set(there) - set(files))
    if left_out:
        log.warning("%s: left out, as they are no data that is read here: %s", root, _few_names(left_out, root))
    return files


def _without_documentation(files: list[Path]) -> list[Path]:
    """The files without those that describe the tables among them."""
    described = [file for file in files if file.name not in TABLE_DOCUMENTATION]
    if not any(kind_of(file) in TABLE_FORMATS for file in described):
        return files
    return [
        file
        for file in described
        if kind_of(file) in TABLE_FORMATS
        or not (kind_of(file) == ".md" or file.name.lower().partition(".")[0] in DOCUMENTATION)
    ]


def _few_names(files: Sequence[Path], root: Path, most: int = 5) -> str:
    names = [str(file.relative_to(root)) for file in files[:most]]
    return ", ".join([*names, *([f"and {len(files) - most} more"] if len(files) > most else [])])


def _named_splits(root: Path, files: list[Path]) -> dict[str, list[Path]]:
    """The files whose name, or a folder's on the way to them, tells a split."""
    by_split: dict[str, list[Path]] = {}
    for file in files:
        parts = file.relative_to(root).parts
        match = next(filter(None, (SPLIT_NAME.search(part.lower()) for part in parts)), None)
        if match:
            by_split.setdefault(SPELLINGS.get(match.group(1), "validation"), []).append(file)
    return by_split


def _read_columns(file: Path, fields: Sequence[str]) -> list[str]:
    """The rows of some columns, a line for each column; an empty (null) cell is an empty text, as a missing one is."""
    rows = read_rows(file)
    columns = columns_of(rows)
    errors = [
        f"{file} has no column {field!r}, only: {', '.join(map(str, columns)) or '(none)'}. dataset=text reads any "
        "one, named by dataset.field"
        for field in fields
        if field not in columns
    ]
    if errors:
        raise UserError(errors)
    texts, errors = [], []
    for index, row in enumerate(rows):
        try:
            texts.append("\n".join(as_text(row.get(field), field, f"{file}:{index}") for field in fields))
        except UserError as error:
            errors.append(f"{error}. Write it as text; dataset=text reads another column, named by dataset.field")
    if errors:
        raise UserError(first_few(errors))
    return texts
