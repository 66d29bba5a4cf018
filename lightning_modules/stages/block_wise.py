"""Block-wise transfer: groups of layers learn to reproduce the original's hidden states at the group's end.

Unlike layer-wise transfer it sees what the rest of a layer makes of the attention's error, and with inputs from the
recovered model each group learns to make up for the errors of those below it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from data_modules.batches import ModelInput, is_real
from lightning_modules.hidden_states.frozen_states import FrozenStates
from lightning_modules.hidden_states.recorded_calls import Calls
from lightning_modules.stages import STAGES
from lightning_modules.stages.stage import Loss, Workspace
from lightning_modules.surgery.trained_parameters import attention_parameters
from lightning_modules.training.imitation import relative_error
from registries.architectures import architecture_of


@STAGES.register("block_wise")
@dataclass
class BlockWise:
    """Trains the attention of the replaced layers, group by group, all in one pass; no gradient crosses groups.

    The loss of a token is the squared error of its hidden state at the end of a group, relative to what the original
    group adds to it (see `relative_error`).

    Args:
        layers_per_group: consecutive layers (replaced or not) that learn together.
        inputs: what each group is fed: hidden states of the `original`, or of the `recovered` model.
    """

    workspace: Workspace
    steps: Annotated[int, Ge(1)] | None = None
    lr: Annotated[float, Gt(0)] | None = None
    batch_size: Annotated[int, Ge(1)] | None = None
    layers_per_group: Annotated[int, Ge(1)] = 1
    inputs: Literal["original", "recovered"] = "original"

    scope: ClassVar[str] = "layers"

    def __post_init__(self) -> None:
        original, replaced = self.workspace.original, self.workspace.surgery.layers
        blocks = architecture_of(original.config.model_type).blocks
        size, end = self.layers_per_group, original.config.num_hidden_layers
        first = replaced[0] // size * size  # nothing below differs from the original
        groups = [range(start, min(start + size, end)) for start in range(first, replaced[-1] + 1, size)]
        if self.inputs == "original":
            groups = [group for group in groups if not set(group).isdisjoint(replaced)]
        self._groups = {group[0]: [f"{blocks}.{layer}" for layer in group] for group in groups}
        self._learns = {group[0] for group in groups if not set(group).isdisjoint(replaced)}
        sides = {f"{start} input": (paths[0], "input") for start, paths in self._groups.items()}
        sides |= {f"{start} output": (paths[-1], "output") for start, paths in self._groups.items()}
        self._states = FrozenStates(original, sides, self.workspace.activations, self.workspace.identity)
        self._calls = Calls(original, [path for paths in self._groups.values() for path in paths])

    @staticmethod
    def imitates(keys: Mapping[str, Any]) -> bool:
        return True

    def prepare(self, model: nn.Module) -> None:
        pass

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return attention_parameters(model, self.workspace.surgery.layers)

    def start(self, model: nn.Module) -> None:
        self._states.reserve(self.workspace.train_rows(), self.steps * self.batch_size)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Loss:
        inputs, real = ModelInput.of(batch), is_real(batch)
        states, calls = self._states(inputs), self._calls(inputs)
        total, parts, hidden = torch.zeros((), device=inputs.tokens.device), {}, None
        for start, paths in self._groups.items():
            source, target = states[f"{start} input"], states[f"{start} output"]
            hidden = source if self.inputs == "original" or hidden is None else hidden.detach()
            with torch.set_grad_enabled(start in self._learns):
                for path in paths:
                    hidden = calls[path](model.get_submodule(path), hidden)
            if start in self._learns:
                error = relative_error(hidden, target, target.float() - source.float(), inputs.positions)[real].sum()
                total, parts[f"error_layer_{start}"] = total + error, error.detach()
        return Loss(total / len(self._learns), int(real.sum()), parts)
