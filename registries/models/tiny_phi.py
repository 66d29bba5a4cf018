"""tiny_phi: a small Phi model that this project pretrained on the documentation that ships with Python."""

from __future__ import annotations

from pathlib import Path

from registries import MODELS
from registries.models.model_folder import path_errors
from registries.models.pretrained import PretrainedModel

TINY_PHI_FOLDER = Path(__file__).parent / "tiny_phi_weights"


@MODELS.register("tiny_phi", check=path_errors)
def tiny_phi(path: str | None = None, revision: str | None = None) -> PretrainedModel:
    """4 layers, width 256, 4 heads, 2,048 tokens; shipped in fp16. `path` gives another model instead."""
    return PretrainedModel(path or str(TINY_PHI_FOLDER), revision)
