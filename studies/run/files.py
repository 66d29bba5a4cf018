"""Files that are written aside and renamed, with checksums where they are read back; errors of the disk in words."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from registries.partial_files import atomic_write
from registries.registry import UserError

CHECKSUM = "sha256"


def write_text(file: Path, text: str) -> None:
    """Write a file aside and rename it. Raises UserError where the disk is full."""
    try:
        with atomic_write(file) as partial:
            partial.write_text(text)
    except OSError as error:
        raise disk_error(error, file) from error


def write_checked(file: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as JSON with a checksum, which `read_checked` compares. Raises UserError as `write_text`."""
    write_text(file, json.dumps({**content, CHECKSUM: _checksum(content)}))


def read_checked(file: Path, required: bool = False) -> dict[str, Any]:
    """What `write_checked` wrote.

    Args:
        required: whether there must be a checksum; the files of runs of earlier versions have none.

    Raises:
        UserError: the file is damaged, or not there.
    """
    try:
        content = json.loads(file.read_text())
        expected = content.pop(CHECKSUM, None)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error}): remove {file.parent} and run the study again") from error
    if expected != _checksum(content) and (required or expected is not None):
        raise UserError(
            f"{file} is damaged (its content does not fit its checksum): remove {file.parent} and run the study again"
        )
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def make_folder(folder: Path) -> None:
    """Make a folder if it is not there. Raises UserError where the disk is full or cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder / "file") from error


def disk_error(error: OSError, file: Path) -> Exception:
    """A full disk, or a place where nothing can be written, as a UserError; any other error as it is."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return UserError(
            f"cannot write to {file.parent}: {error.strerror}; set output_dir or cache_dir to another folder"
        )
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    return UserError(f"the disk of {file.parent} is full: free some space, then continue with resume=auto")
