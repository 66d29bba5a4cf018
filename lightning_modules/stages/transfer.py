"""Layer-wise transfer: each replaced attention layer learns to reproduce the original's output on its input.

The same idea as attention transfer in LoLCATs (arXiv 2410.10254). All replaced layers learn in one pass, each from
the hidden states of the original model, so that none has to put up with the errors of those below it. Inputs and
outputs of the original layers come from the activation cache: no other layer runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from data_modules.batches import ModelInput, is_real
from lightning_modules.hidden_states.frozen_states import FrozenStates
from lightning_modules.hidden_states.recorded_calls import Calls
from lightning_modules.stages import STAGES
from lightning_modules.stages.stage import Loss, Workspace
from lightning_modules.surgery.trained_parameters import attention_parameters
from lightning_modules.training.imitation import AttentionWeights, relative_error
from registries.architectures import architecture_of


@STAGES.register("transfer")
@dataclass
class Transfer:
    """Trains the replaced attention layers on the relative error of their output (see `relative_error`).

    Args:
        attention_weight: weight of a second term, the divergence of each layer's attention weights from the
            original's, per token and averaged over heads.
    """

    workspace: Workspace
    steps: Annotated[int, Ge(1)] | None = None
    lr: Annotated[float, Gt(0)] | None = None
    batch_size: Annotated[int, Ge(1)] | None = None
    attention_weight: Annotated[float, Ge(0)] = 0.0

    scope: ClassVar[str] = "layers"

    def __post_init__(self) -> None:
        original, self.layers = self.workspace.original, self.workspace.surgery.layers
        architecture = architecture_of(original.config.model_type)
        self._paths = {layer: architecture.attention_path(layer) for layer in self.layers}
        sides = {f"{layer} {side}": (path, side) for layer, path in self._paths.items() for side in ("input", "output")}
        self._states = FrozenStates(original, sides, self.workspace.activations, self.workspace.identity)
        self._calls = Calls(original, list(self._paths.values()))
        self._weights: AttentionWeights | None = None

    @staticmethod
    def imitates(keys: Mapping[str, Any]) -> bool:
        return True

    def prepare(self, model: nn.Module) -> None:
        pass

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return attention_parameters(model, self.layers)

    def start(self, model: nn.Module) -> None:
        self._states.reserve(self.workspace.train_rows(), self.steps * self.batch_size)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Loss:
        inputs, real = ModelInput.of(batch), is_real(batch)
        if self.attention_weight and self._weights is None:  # not before what trains was parted from the original
            self._weights = AttentionWeights(self.workspace.original, self.layers)
        states, calls = self._states(inputs), self._calls(inputs)
        total, parts = torch.zeros((), device=inputs.tokens.device), {}
        for layer, path in self._paths.items():
            attention, call = model.get_submodule(path), calls[path]
            hidden, target = states[f"{layer} input"], states[f"{layer} output"]
            if self._weights is None:
                output = call(attention, hidden)
            else:
                output, divergences = self._weights.compare(layer, attention, call, hidden)
                divergence = divergences[real].sum()
                total = total + self.attention_weight * divergence
                parts[f"weights_layer_{layer}"] = divergence.detach()
            error = relative_error(output, target, target, inputs.positions)[real].sum()
            total, parts[f"error_layer_{layer}"] = total + error, error.detach()
        return Loss(total / len(self.layers), int(real.sum()), parts)
