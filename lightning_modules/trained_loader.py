"""The model that a finished run trained, as a loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lightning_modules.weights import TRAINED_WEIGHTS, fitting_weights, saved_tokenizer
from registries.models.content import folder_sha256


class TrainedLoader:
    """Loads what another loader loads, with the weights that a run trained; see `ModelLoader`.

    Args:
        loader: of the model before the run.
        run: its folder.
    """

    def __init__(self, loader: Any, run: Path):
        self._loader, self._run = loader, run

    def config(self) -> dict[str, Any] | None:
        return self._loader.config()

    def identity(self) -> str:
        return f"{self._loader.identity()} {folder_sha256((self._run / TRAINED_WEIGHTS).parent)}"

    def tokenizer(self) -> Any:
        return saved_tokenizer(self._run) or self._loader.tokenizer()

    def model(self, dtype: Any) -> Any:
        """See `ModelLoader`.

        Raises:
            UserError: the run has not finished, or its weights are of another model.
        """
        model = self._loader.model(dtype)
        with torch.no_grad():
            for parameter, tensor in fitting_weights(model, self._run / TRAINED_WEIGHTS):
                parameter.copy_(tensor)
        return model
