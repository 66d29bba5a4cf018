"""Early stopping that ends with the best weights."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer


class BestWeights(Callback):
    """Stops training when the validation loss no longer falls, and puts back the weights of its lowest point.

    Args:
        patience: validations in a row without improvement after which training stops.
        min_delta: by how much the loss must fall to count as improved, in nats per token.
    """

    def __init__(self, patience: int, min_delta: float):
        self.patience, self.min_delta = patience, min_delta
        self.best, self.best_step, self.waited = float("inf"), 0, 0
        self.weights: dict[str, torch.Tensor] = {}

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        loss = float(trainer.callback_metrics["val/loss"])
        if loss < self.best - self.min_delta:
            self.best, self.best_step, self.waited = loss, trainer.global_step, 0
            self.weights = {name: p.detach().clone() for name, p in module.trained_parameters().items()}
        else:
            self.waited += 1
        if self.waited >= self.patience:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        for name, parameter in module.trained_parameters().items():
            if name in self.weights:
                parameter.data.copy_(self.weights[name])

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
