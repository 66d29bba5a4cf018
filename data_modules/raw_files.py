"""Files on a disk: the files below a folder, and the text in a file."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zlib
from collections import deque
from pathlib import Path

from registries.registry import UserError

COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz")
# By the first bytes of a file, since a downloaded file may be compressed without a suffix that tells it.
COMPRESSIONS = {b"\x1f\x8b\x08": gzip.decompress, b"BZh91AY&SY": bz2.decompress, b"\xfd7zXZ\x00": lzma.decompress}

# The mark of UTF-32 begins with that of UTF-16, so it is looked for first.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}

BEGINNING = 8000  # characters; a file with a zero among them is no text (git's rule)


def kind_of(file: Path) -> str:
    """The suffix that tells what a file holds, in lower case: `.txt` of `notes.TXT` and of `notes.txt.gz`."""
    compressed = file.suffix.lower() in COMPRESSED_SUFFIXES
    return (Path(file.stem) if compressed else file).suffix.lower()


def files_below(root: Path) -> list[Path]:
    """The files below a folder, sorted by path; names that begin with a dot are left out.

    Linked folders are followed, and each folder is read once (by its own path if it lies below `root`), so links may
    form a loop.

    Raises:
        UserError: a folder cannot be read.
    """
    files, visited, folders, linked = [], set(), [root], deque()
    while folders or linked:
        folder = folders.pop() if folders else linked.popleft()
        target = folder.resolve()
        if target in visited or target in root.resolve().parents:  # a link upwards leads back here
            continue
        visited.add(target)
        try:
            entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        except OSError as error:
            raise UserError(f"the folder {folder} cannot be read: {error.strerror}") from None
        for entry in entries:
            if not entry.is_dir():
                files.append(entry)
            elif entry.is_symlink():
                linked.append(entry)
            else:
                folders.append(entry)
    return sorted(files)


def read_text(file: Path, encoding: str = "utf-8", advice: str = "") -> str:
    r"""The text of a file, decompressed where it is compressed (gzip, bz2, xz); line ends stay as they are.

    A byte-order mark overrides `encoding` and is no part of the text.

    Args:
        advice: for messages, how a user names an encoding, with `{encoding}` in it.

    Raises:
        UserError: the file cannot be read, or holds no text in this encoding.
    """
    content, encoding = _without_mark(_read(file), encoding)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(_undecodable(file, content, encoding, error.start, advice)) from None
    if "\0" in text[:BEGINNING]:
        raise UserError(_binary(file, advice))
    return text


def _read(file: Path) -> bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    for beginning, decompress in COMPRESSIONS.items():
        if content.startswith(beginning):
            try:
                return decompress(content)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
                raise UserError(
                    f"{file} cannot be decompressed ({decompress.__module__}: {error}): it is damaged or cut short; "
                    "fetch it again"
                ) from None
    return content


def _without_mark(content: bytes, encoding: str) -> tuple[bytes, str]:
    """The content after its byte-order mark, and the encoding that the mark stands for."""
    for mark, name in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            return content[len(mark) :], name
    return content, encoding


def _binary(file: Path, advice: str) -> str:
    utf16 = f", or if it is UTF-16 without a byte-order mark, {advice.format(encoding='utf-16-le')}" if advice else ""
    return f"{file} is no text: it holds zero bytes, as archives and programs do. Unpack or convert it{utf16}"


def _undecodable(file: Path, content: bytes, encoding: str, offset: int, advice: str) -> str:
    """The message about a byte that is not of this encoding; it shows the text nearby in other encodings."""
    if b"\0" in content[:BEGINNING]:
        return _binary(file, advice)
    message = f"{file} is not {encoding} text: byte 0x{content[offset]:02x} at offset {offset}."
    if not advice:
        return f"{message} Convert it, for example: iconv -f cp1252 -t utf-8"
    excerpt = content[max(0, offset - 10) : offset + 20]
    readings = [f"{name} reads {excerpt.decode(name, errors='replace')!r}" for name in _likely_encodings(content)]
    return f"{message} Here {', '.join(readings)}. Name the right one, for example {advice.format(encoding='cp1252')}"


def _likely_encodings(content: bytes) -> list[str]:
    from charset_normalizer import from_bytes

    guess = from_bytes(content[:100_000]).best()
    return list(dict.fromkeys([*([guess.encoding] if guess else []), "cp1252"]))
