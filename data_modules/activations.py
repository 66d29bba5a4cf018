"""Activations of frozen layers, computed once per block of tokens and read back from memory-mapped files.

An entry is one tensor of one block of tokens at one place of a model. Its file is named by the content of all that
(weights, tokens, layer, dtype: see `place`), so that every stage, epoch and run that needs it finds it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from registries.registry import UserError

log = logging.getLogger(__name__)

FOLDER = "activations"
GIGABYTE = 2**30


class ActivationCache:
    """Reads and writes entries below `<cache_dir>/activations/<place>/`.

    Concurrent runs may use it: an entry is written aside and renamed, and one that is gone or damaged is computed anew.

    Args:
        cache_dir: the folder that all runs share.
        max_gb: what all entries together may take. Places that were not used for longest are removed for new ones.
        enabled: False keeps nothing and computes everything, in the same way and so with the same result.
    """

    def __init__(self, cache_dir: str | Path, max_gb: float, enabled: bool = True):
        self.folder = Path(cache_dir).expanduser() / FOLDER
        self.max_bytes = int(max_gb * GIGABYTE)
        self.enabled = enabled
        self._uncached: set[str] = set()  # places for which there is no room

    def reserve(self, places: Sequence[str], entries: int, entry_bytes: int) -> bool:
        """Make room for `entries` entries of `entry_bytes` at each place, before the work that needs them starts.

        Returns:
            Whether they will be kept; not where they alone would take more than `max_gb`.

        Raises:
            UserError: the disk has no room for them.
        """
        if not self.enabled:
            return False
        present = sum(_entries(self.folder / place) for place in places)
        needed = max(0, entries * len(places) - present) * entry_bytes
        if entries * len(places) * entry_bytes > self.max_bytes:
            self._uncached.update(places)
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        for place in places:
            (self.folder / place).mkdir(exist_ok=True)
            os.utime(self.folder / place)
        self._evict(self.max_bytes - needed, keep=set(places))
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"the activations of {entries} blocks at {len(places)} places take {needed / GIGABYTE:.2g} GB, and the "
                f"disk of {self.folder} has {free / GIGABYTE:.2g} GB left: free some, set cache_dir to a folder on "
                "another disk, use fewer blocks (dataset.train_size) or set activations.cache=false"
            )
        return True

    def fetch(
        self, places: Sequence[str], input_ids: Tensor, compute: Callable[[Tensor], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The activations of a batch at some places.

        Args:
            input_ids: (batch, length).
            compute: gives the activations of one block (1, length) at every place, each (1, ...). Always of one, so
                that what an entry holds does not depend on the batch in which it was first needed.

        Returns:
            place -> (batch, ...).
        """
        rows = [self._row(places, row[None], compute) for row in input_ids]
        return {place: torch.cat([row[place] for row in rows]) for place in places}

    def _row(self, places: Sequence[str], row: Tensor, compute: Callable) -> dict[str, Tensor]:
        kept = self.enabled and self._uncached.isdisjoint(places)
        name = hashlib.sha256(row.cpu().numpy().tobytes()).hexdigest()[:32]
        files = {place: self.folder / place / f"{name}.safetensors" for place in places} if kept else {}
        found = {place: _read(file) for place, file in files.items()}
        if kept and all(tensor is not None for tensor in found.values()):
            return {place: tensor.to(row.device) for place, tensor in found.items()}
        computed = compute(row)
        for place, file in files.items():
            if found[place] is None:
                _write(file, computed[place])
        return {place: computed[place] for place in places}

    def _evict(self, limit: int, keep: set[str]) -> None:
        """Remove the places used least recently until what is left takes at most `limit` bytes."""
        others = sorted(
            (folder for folder in self.folder.iterdir() if folder.name not in keep and folder.is_dir()),
            key=lambda folder: folder.stat().st_mtime,
        )
        sizes = {folder: _bytes(folder) for folder in others}
        total = sum(sizes.values()) + sum(_bytes(self.folder / place) for place in keep)
        for folder in others:
            if total <= limit:
                return
            shutil.rmtree(folder, ignore_errors=True)  # another run may remove it too
            total -= sizes[folder]


def place(**identity: Any) -> str:
    """The name of a place: a hash of everything that its activations depend on, beside the tokens."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def _entries(folder: Path) -> int:
    return sum(1 for _ in folder.glob("*.safetensors"))


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
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError) as error:
        log.warning("computing the damaged activations %s anew (%s)", file, error)
        return None
    if str(_crc32(tensor)) != expected:
        log.warning("computing the damaged activations %s anew (their content does not fit its checksum)", file)
        return None
    return tensor


def _write(file: Path, tensor: Tensor) -> None:
    tensor = tensor.detach().cpu().contiguous()
    content = save({"states": tensor}, metadata={"crc32": str(_crc32(tensor))})
    aside = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)  # another run may have evicted it
        aside.write_bytes(content)
        os.replace(aside, file)
    except OSError as error:
        raise UserError(
            f"cannot write activations to {file.parent}: {error.strerror or error}; free some space, set cache_dir to "
            "another folder, or set activations.cache=false"
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def _crc32(tensor: Tensor) -> int:
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy())
