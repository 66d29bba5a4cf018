"""Activations of frozen layers, computed once per block of tokens and read back from memory-mapped files.

An entry is one tensor of one block of tokens at one place of a model. Its file is named by the content of all that
(weights, tokens, layer, dtype: see `state_key`), so that every stage, epoch and run that needs it finds it.
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
from registries.partial_files import clear_partial_files, partial_file
from registries.registry import UserError

log = logging.getLogger(__name__)

FOLDER = "activations"
SUFFIX = ".safetensors"
GIGABYTE = 2**30


class ActivationCache:
    """Reads and writes entries below `<cache_dir>/activations/<key>/`.

    Concurrent runs may use it: an entry is written aside and renamed, and one that is gone or damaged is computed anew.

    Args:
        cache_dir: the folder that all runs share.
        max_gb: what all entries together may take. Places that were not used for longest are removed for new ones.
        enabled: False keeps nothing and computes everything, in the same way and so with the same result.
    """

    def __init__(self, cache_dir: str | Path, max_gb: float, enabled: bool = True):
        self.folder = Path(cache_dir).expanduser() / FOLDER
        self.max_bytes = int(min(max_gb, GIGABYTE) * GIGABYTE)  # a larger number than any disk may be no integer
        self.enabled = enabled
        self._uncached: set[str] = set()  # places for which there is no room

    def reserve(self, keys: Sequence[str], rows: Iterable[ModelInput], entries: int, entry_bytes: int) -> bool:
        """Make room at each place, before the work that needs it starts.

        Args:
            rows: of which some will be asked for, as in `fetch`; what is there of them needs no room.
            entries: how many of them will be asked for.
            entry_bytes: size of an entry.

        Returns:
            Whether they will be kept; not where they alone would take more than `max_gb`.

        Raises:
            UserError: the disk has no room for them.
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
            return True  # everything is there to be read, and nothing can be removed
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
        """The activations of a batch at some places.

        Args:
            compute: gives the activations of one row at every place, each (1, ...). Always of one, so
                that what an entry holds does not depend on the batch in which it was first needed.

        Returns:
            place -> (batch, ...).
        """
        rows = [self._row(keys, row, compute) for row in inputs.rows()]
        return {key: torch.cat([row[key] for row in rows]) for key in keys}

    def _row(self, keys: Sequence[str], row: ModelInput, compute: Callable) -> dict[str, Tensor]:
        kept = self.enabled and self._uncached.isdisjoint(keys)
        files = {key: self.folder / key / f"{row.digest()}{SUFFIX}" for key in keys} if kept else {}
        found = {key: _read(file) for key, file in files.items()}
        if kept and all(tensor is not None for tensor in found.values()):
            return {key: tensor.to(row.tokens.device) for key, tensor in found.items()}
        computed = compute(row)
        for key, file in files.items():
            if found[key] is None:
                _write(file, computed[key])
        return {key: computed[key] for key in keys}

    def _evict(self, limit: int, keep: set[str], names: set[str]) -> None:
        """Remove what was used least recently until what is left takes at most `limit` bytes.

        The places `keep` go last, and of them only the entries of other blocks than `names`.
        """
        others = sorted((folder for folder in self.folder.iterdir() if folder.name not in keep), key=_last_used)
        sizes = {folder: _bytes(folder) for folder in others}
        total = sum(sizes.values()) + sum(_bytes(self.folder / key) for key in keep)
        for folder in others:
            if total <= limit:
                return
            shutil.rmtree(folder, ignore_errors=True)  # another run may remove it too
            total -= sizes[folder]
        for key in keep:
            for name in _names(self.folder / key) - names if total > limit else ():
                file = self.folder / key / f"{name}{SUFFIX}"
                try:
                    total -= file.stat().st_size
                    file.unlink()
                except FileNotFoundError:  # another run has removed it
                    continue


def state_key(**identity: Any) -> str:
    """The name of a place: a hash of everything that its activations depend on, beside the tokens."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def _last_used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:  # another run has removed it
        return 0.0


def _names(folder: Path) -> set[str]:
    """The names of the entries in a place's folder."""
    return {file.stem for file in folder.glob(f"*{SUFFIX}")}


def _bytes(folder: Path) -> int:
    total = 0
    for file in folder.glob("*"):
        try:
            total += file.stat().st_size
        except FileNotFoundError:  # another run has removed or renamed it
            continue
    return total


def _read(file: Path) -> Tensor | None:
    """An entry, mapped into memory; None where there is none, or a damaged one."""
    try:
        with safe_open(file, framework="pt") as content:
            tensor, expected = content.get_tensor("states"), (content.metadata() or {}).get("crc32")
    except (SafetensorError, OSError, RuntimeError) as error:  # torch maps the file, and has errors of its own
        if not file.exists():  # it was never there, or another run has removed it meanwhile
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
    aside = partial_file(file)
    with _write_errors(file.parent):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(content)
            os.replace(aside, file)
        except FileNotFoundError:  # another run has evicted the place meanwhile: this entry will be computed anew
            log.info("%s is gone", file.parent)
        finally:
            aside.unlink(missing_ok=True)


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
    kind = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), kind)
