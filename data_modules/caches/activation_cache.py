"""Activations of frozen layers, computed once per block of tokens and read back from memory-mapped files.

An entry is one tensor: the activations of one block of tokens at one site of a model. The site's folder is named by a
key (see `state_key`), the file in it by the tokens, so that every stage, epoch and run that needs an entry finds it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from data_modules.batches import ModelInput
from registries.partial_files import atomic_write, clear_partial_files
from registries.registry import UserError

log = logging.getLogger(__name__)

ACTIVATIONS_FOLDER = "activations"
ENTRY_SUFFIX = ".safetensors"
GIGABYTE = 2**30


class ActivationCache:
    """Reads and writes entries below `<cache_dir>/activations/<key>/`.

    Concurrent runs may use it: an entry is written to a partial file that is then renamed, and an entry that is gone or
    damaged is computed anew.

    Args:
        cache_dir: the folder that all runs share.
        max_gb: the size that all entries together may have; the keys that were unused for longest make room for others.
        enabled: False keeps nothing and computes everything, in the same way and so with the same result.
    """

    def __init__(self, cache_dir: str | Path, max_gb: float, enabled: bool = True):
        self.folder = Path(cache_dir).expanduser() / ACTIVATIONS_FOLDER
        self.max_bytes = int(min(max_gb, GIGABYTE) * GIGABYTE)  # a larger number than any disk may be no integer
        self.enabled = enabled
        self._uncached: set[str] = set()  # keys for whose entries there is no room

    def reserve(self, keys: Sequence[str], rows: Iterable[ModelInput], entries: int, entry_bytes: int) -> bool:
        """Make room for the entries of each key, before the work that needs them starts.

        Args:
            rows: of which some will be fetched. Their present entries need no room.
            entries: how many of these rows will be fetched.
            entry_bytes: size of an entry.

        Returns:
            Whether the entries will be kept. They are not where they alone would take more than `max_gb`.

        Raises:
            UserError: the disk has no room for the entries.
        """
        if not self.enabled:
            return False
        if entries * len(keys) * entry_bytes > self.max_bytes:
            self._uncached.update(keys)
            return False
        self._uncached.difference_update(keys)
        names = {row.digest() for row in rows}
        present = sum(min(entries, len(names & _names(self.folder / key))) for key in keys)
        needed = (entries * len(keys) - present) * entry_bytes
        if not needed and not os.access(self.folder, os.W_OK):
            return True  # every entry is present, and nothing can be removed
        with _write_errors(self.folder):
            for key in keys:
                (self.folder / key).mkdir(parents=True, exist_ok=True)
                os.utime(self.folder / key)
            clear_partial_files(self.folder.glob("*/*.part*"))
        self._evict(self.max_bytes - needed, set(keys), names)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"the activations of {entries} blocks at {len(keys)} places take {needed / GIGABYTE:.1f} GB, and "
                f"the disk of {self.folder} has {free / GIGABYTE:.1f} GB left: free some, set cache_dir to a folder on "
                "another disk, use fewer blocks (dataset.train_size) or set activations.cache=false"
            )
        return True

    def fetch(
        self, keys: Sequence[str], inputs: ModelInput, compute: Callable[[ModelInput], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The activations of a batch for some keys.

        Args:
            compute: gives the activations (1, ...) of one row for every key. It gets one row at a time, so
                that an entry does not depend on the batch in which it was first needed.

        Returns:
            key -> (batch, ...).
        """
        batch = [self._fetch_row(keys, row, compute) for row in inputs.rows()]
        return {key: torch.cat([states[key] for states in batch]) for key in keys}

    def _fetch_row(self, keys: Sequence[str], row: ModelInput, compute: Callable) -> dict[str, Tensor]:
        cached = self.enabled and self._uncached.isdisjoint(keys)
        files = {key: self.folder / key / f"{row.digest()}{ENTRY_SUFFIX}" for key in keys} if cached else {}
        entries = {key: _read(file) for key, file in files.items()}
        if cached and all(entry is not None for entry in entries.values()):
            return {key: entry.to(row.tokens.device) for key, entry in entries.items()}
        computed = compute(row)
        for key, file in files.items():
            if entries[key] is None:
                _write(file, computed[key])
        return {key: computed[key] for key in keys}

    def _evict(self, limit: int, keep: set[str], names: set[str]) -> None:
        """Remove the entries that were used least recently until the rest takes at most `limit` bytes.

        The keys `keep` go last, and keep their entries of the blocks `names`.
        """
        removable = sorted((folder for folder in self.folder.iterdir() if folder.name not in keep), key=_last_used)
        sizes = {folder: _bytes(folder) for folder in removable}
        total = sum(sizes.values()) + sum(_bytes(self.folder / key) for key in keep)
        for folder in removable:
            if total <= limit:
                return
            shutil.rmtree(folder, ignore_errors=True)  # another run may remove it too
            total -= sizes[folder]
        for key in keep:
            for name in _names(self.folder / key) - names if total > limit else ():
                file = self.folder / key / f"{name}{ENTRY_SUFFIX}"
                try:
                    total -= file.stat().st_size
                    file.unlink()
                except FileNotFoundError:  # another run has removed it
                    continue


def state_key(**identity: Any) -> str:
    """The key of a site: a hash of all that its activations depend on, beside the tokens (weights, layer, dtype)."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def _last_used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:  # another run has removed it
        return 0.0


def _names(folder: Path) -> set[str]:
    """The names of the entries in a key's folder."""
    return {file.stem for file in folder.glob(f"*{ENTRY_SUFFIX}")}


def _bytes(folder: Path) -> int:
    total = 0
    for file in folder.glob("*"):
        try:
            total += file.stat().st_size
        except FileNotFoundError:  # another run has removed or renamed it
            continue
    return total


def _read(file: Path) -> Tensor | None:
    """An entry, mapped into memory; None where it is missing or damaged."""
    try:
        with safe_open(file, framework="pt") as content:
            tensor, expected = content.get_tensor("states"), (content.metadata() or {}).get("crc32")
    except (SafetensorError, OSError, RuntimeError) as error:  # torch maps the file, and has errors of its own
        if not file.exists():  # it was never written, or another run has removed it meanwhile
            return None
        log.warning("computing the damaged activations %s anew (%s)", file, error)
        return None
    if str(_crc32(tensor)) != expected:
        log.warning("computing the damaged activations %s anew (their content does not fit its checksum)", file)
        return None
    return tensor


def _write(file: Path, tensor: Tensor) -> None:
    tensor = tensor.detach().cpu().contiguous()
    content = save({"states": tensor}, metadata={"crc32": str(_crc32(tensor))})
    with _write_errors(file.parent):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as partial:
                partial.write_bytes(content)
        except FileNotFoundError:  # another run has evicted the key meanwhile: this entry will be computed anew
            log.info("%s is gone", file.parent)


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write activations to {folder}: {error.strerror or error}; free some space, set cache_dir to "
            "another folder, or set activations.cache=false"
        ) from error


def _crc32(tensor: Tensor) -> int:
    header = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), header)
