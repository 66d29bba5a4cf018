"""Files of tensors by key, safe with several processes and against damaged entries."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import save

from data_modules.tensor_files import read_content, tensors_sha256
from registries.partial_files import atomic_write, clear_partial_files
from registries.registry import UserError

log = logging.getLogger(__name__)


def cached_tensors(path: Path, make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors of the file `path`, which is made and written where it is missing or damaged.

    Of several processes that ask at once, one makes the file and the others wait for it. A whole file needs no lock, so
    a cache folder without write permission can be read.

    Raises:
        UserError: the folder cannot be written.
    """
    with _folder_errors(path.parent):
        existed = path.exists()  # asked before reading, since another process may write the file meanwhile
        tensors = _read(path)
    if tensors is not None:
        return tensors
    with _folder_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        lock.acquire()
    try:
        tensors = None if existed else _read(path)  # another process may have made it meanwhile
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
    with _folder_errors(path.parent):
        clear_partial_files(path.parent.iterdir())
        with atomic_write(path) as partial:
            partial.write_bytes(content)


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
