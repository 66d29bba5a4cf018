"""Local text files and folders -> documents by split."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from data_modules.documents import Document, drop_trained, halve, named_by_content, split_documents
from data_modules.raw_files import files_below, kind_of, read_text
from data_modules.tables import TABLE_FORMATS, as_text, columns_of, first_few, read_rows
from registries.registry import UserError, is_there

log = logging.getLogger(__name__)

T = TypeVar("T")  # `Document`, or another class with a name and a text

TEXT_SUFFIXES = (".txt", ".md", ".text", ".tokens", ".raw")
# Files beside tables that hold no data, as every .md there.
DOCUMENTATION = ("readme", "license", "licence", "copying", "notice", "authors", "changelog", "citation")
TABLE_DOCUMENTATION = ("dataset_info.json", "dataset_infos.json")  # of the Hugging Face library

DOCUMENT_LENGTH = 4000  # characters, about 1,000 tokens
MIN_DOCUMENTS = 20  # a shorter text gets shorter documents, so that all three splits get some
SHORTEST = 20  # characters of a document that is cut where the text has no separator

# A name such as train.txt, valid-00000-of-00002.parquet or wiki.test.tokens, but not testing.md.
SPLIT_NAME = re.compile(r"(?:^|[._-])(train|training|valid|validation|val|dev|test)(?:[0-9._-]|$)")
SPELLINGS = {"train": "train", "training": "train", "test": "test"}  # all other names mean validation

WIKITEXT_HEADING = re.compile(r"^ ?= (?!=)(.+) = ?\r?\n?$")
# Separators of documents, best first: the ends of paragraphs, lines, sentences (also without a space after them) and
# words; a text may be one long line.
SEPARATORS = (
    r"\n[ \t\r]*\n",
    r"\n",
    r"[.!?\u2026][\"')\]\u2019\u201d]*\s+|[\u3002\uff01\uff1f\uff0e\uff61][\u300d\u300f\uff09\u2019\u201d]*",
    r"\s",
)


def check_path(path: str | None) -> list[str]:
    """A message for a path that does not exist."""
    if path is None or is_there(path):
        return []
    return [f"dataset.path={path!r} does not exist (looked from {Path.cwd()}): give an existing file or folder"]


def read_path(
    path: str, field: str | Sequence[str] = "text", rows_are_lines: bool = False, encoding: str = "utf-8"
) -> dict[str, list[Document]]:
    """The documents of a file or folder, by split.

    A folder with files named for train and for validation or test keeps these splits (the missing one is carved from
    the other); everything else is split by document. The content of a document decides its split (of a WikiText
    article, its title), so that a file is split alike under any name. No text is both in training and held out.

    Args:
        field: the column that holds the text in .json, .jsonl and .parquet files; of several columns, each is a line.
        rows_are_lines: rows of such files are lines of WikiText articles rather than documents.
        encoding: of plain text files that have no byte-order mark.

    Raises:
        UserError: nothing there can be read, a file has another encoding, or a column is missing.
    """
    splits = by_split(path, lambda file, _: read_file(file, field, rows_are_lines, encoding))
    for message in drop_trained(splits, "documents"):
        log.warning("%s: %s", path, message)
    return splits


def by_split(
    path: str, read: Callable[[Path, Path], list[T]], suffixes: Sequence[str] = (*TEXT_SUFFIXES, *TABLE_FORMATS)
) -> dict[str, list[T]]:
    """The documents that `read(file, root)` gives for the files (with these suffixes) of a path, by split.

    How they are split, see `read_path`. Linked folders are followed. A README and its like beside tables are no data. A
    warning names the files that are left out.

    Raises:
        UserError: nothing there can be read.
    """
    errors = check_path(path)
    if errors:
        raise UserError(errors)
    root = Path(path).expanduser()
    all_files = _files(root, suffixes)
    files_by_split = _named_splits(root, all_files)

    def read_all(files: list[Path]) -> list[T]:
        return [document for file in files for document in read(file, root)]

    if "train" not in files_by_split or len(files_by_split) < 2:
        return split_documents(read_all(all_files))
    unused = sorted(set(all_files).difference(*files_by_split.values()))
    if unused:
        log.warning("%s: left out, as the name tells no split: %s", path, ", ".join(file.name for file in unused))
    splits = {split: read_all(files) for split, files in files_by_split.items()}
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
    """A text cut into documents; joined in order, they are the text again.

    WikiText headings start documents where there are at least three of them; else paragraphs are gathered into
    documents of some 4,000 characters. Where there are too few paragraphs, or one of them is most of the text, lines
    are gathered instead, else sentences, words or, in a text without separators, characters.
    """
    articles = list(wikitext_articles(_pieces(text, r"\n")))
    if len(articles) >= 3:
        return articles
    length = min(DOCUMENT_LENGTH, len(text) // MIN_DOCUMENTS)
    for level in range(len(SEPARATORS) + 1):
        texts = _join_short(_cut(text, SEPARATORS[level:], max(SHORTEST, length)), length)
        if len(texts) >= 3 and max(map(len, texts)) <= len(text) / 2:
            break
    return [named_by_content(text) for text in texts]


def wikitext_articles(lines: Iterable[str]) -> Iterator[Document]:
    """Lines of WikiText -> articles, named by their titles; text before the first title is named by its content.

    A top-level heading ` = Title = ` after a blank line starts an article; blank lines before the first belong to it.
    """
    title, gathered, after_blank = None, [], True
    for line in lines:
        heading = WIKITEXT_HEADING.match(line) if after_blank else None
        if heading:
            if any(map(str.strip, gathered)):
                yield _article(title, gathered)
                gathered = []
            title = heading.group(1)
        gathered.append(line)
        after_blank = not line.strip()
    if gathered:
        yield _article(title, gathered)


def _article(title: str | None, lines: Sequence[str]) -> Document:
    text = "".join(lines)
    return named_by_content(text) if title is None else Document(title, text)


def _cut(text: str, separators: Sequence[str], length: int) -> Iterator[str]:
    """The text cut after every match of the first separator; a piece that is still too long is cut by the next ones.

    Without separators, the text is cut into pieces of `length` characters.
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
    groups: list[list[str]] = []
    joined_length = length
    for piece in pieces:
        if joined_length >= length:
            groups.append([])
            joined_length = 0
        groups[-1].append(piece)
        joined_length += len(piece)
    return ["".join(group) for group in groups]


def _files(root: Path, suffixes: Sequence[str]) -> list[Path]:
    if root.is_file():
        return [root]
    present = files_below(root)
    readable = [file for file in present if kind_of(file) in suffixes and file.is_file()]
    if not readable:
        raise UserError(f"dataset.path={str(root)!r} holds no file that can be read: {', '.join(suffixes)} are")
    files = _without_documentation(readable)
    left_out = sorted(set(present) - set(files))
    if left_out:
        log.warning("%s: left out, as they are no data that is read here: %s", root, _few_names(left_out, root))
    return files


def _without_documentation(files: list[Path]) -> list[Path]:
    """The files without those that describe the tables among them."""
    candidates = [file for file in files if file.name not in TABLE_DOCUMENTATION]
    if not any(kind_of(file) in TABLE_FORMATS for file in candidates):
        return files
    return [
        file
        for file in candidates
        if kind_of(file) in TABLE_FORMATS
        or not (kind_of(file) == ".md" or file.name.lower().partition(".")[0] in DOCUMENTATION)
    ]


def _few_names(files: Sequence[Path], root: Path, most: int = 5) -> str:
    names = [str(file.relative_to(root)) for file in files[:most]]
    return ", ".join([*names, *([f"and {len(files) - most} more"] if len(files) > most else [])])


def _named_splits(root: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Split -> the files that carry its name, or lie in a folder that carries it."""
    files_by_split: dict[str, list[Path]] = {}
    for file in files:
        names = file.relative_to(root).parts
        match = next(filter(None, (SPLIT_NAME.search(name.lower()) for name in names)), None)
        if match:
            files_by_split.setdefault(SPELLINGS.get(match.group(1), "validation"), []).append(file)
    return files_by_split


def _read_columns(file: Path, fields: Sequence[str]) -> list[str]:
    """The text of each row in these columns, a line for each column; a missing or null cell is an empty text."""
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
