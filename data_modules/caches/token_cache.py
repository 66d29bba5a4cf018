"""Files of tensors by key, safe with several processes and against damaged entries."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import save

from data_modules.tensor_files import read_content, tensors_sha256
from registries.partial_files import clear_partial_files, partial_file
from registries.registry import UserError

log = logging.getLogger(__name__)


def cached_tensors(path: Path, make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors in `path`; where it is not there or damaged they are made and written.

    Of several processes that ask at once, one makes the entry and the others wait for it. An entry that is there needs
    no lock, so that a cache which cannot be written is read all the same.

    Raises:
        UserError: the folder cannot be written.
    """
    with _folder_errors(path.parent):
        was_there = path.exists()  # looked at first: another process may write it while this one reads
        tensors = _read(path)
    if tensors is not None:
        return tensors
    with _folder_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        lock.acquire()
    try:
        tensors = None if was_there else _read(path)  # another process may have made it meanwhile
        if tensors is None:
            tensors = make()
            _write(path, tensors)
        return tensors
    finally:
        lock.release()


def _read(path: Path) -> dict[str, torch.Tensor] | None:
    if not path.exists():
        return None
    try:
        tensors, expected = read_content(path)
    except (SafetensorError, OSError) as error:
        log.warning("rebuilding the damaged token cache entry %s (%s)", path, error)
        return None
    if tensors_sha256(tensors) != expected:
        log.warning("rebuilding the damaged token cache entry %s (its content does not fit its checksum)", path)
        return None
    return tensors


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    content = save(tensors, metadata={"sha256": tensors_sha256(tensors)})
    aside = partial_file(path)
    with _folder_errors(path.parent):
        clear_partial_files(path.parent.iterdir())
        try:
            aside.write_bytes(content)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def _folder_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"the disk of {folder} is full: free some space or set cache_dir to a folder on another disk"
        else:
            message = (
                f"cannot write to {folder} ({error.strerror or error}): set cache_dir to a folder that you can write to"
            )
        raise UserError(message) from error
