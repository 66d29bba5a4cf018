"""The model that a finished run trained, as a loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lightning_modules.weights import TRAINED_WEIGHTS, read_weights, saved_tokenizer
from registries.models.content import folder_sha256
from registries.registry import UserError


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
        parameters, trained = dict(model.named_parameters()), read_weights(self._run / TRAINED_WEIGHTS)
        for name, tensor in trained.items():
            if name not in parameters or parameters[name].shape != tensor.shape:
                raise UserError(f"{self._run} trained {name!r}, which the model of its config does not have so")
            with torch.no_grad():
                parameters[name].copy_(tensor)
        return model
