"""Distillation: the KL divergence of the next-token distributions from a teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt
from torch import Tensor, nn

from lightning_modules.stages import STAGES
from lightning_modules.stages.stage import Loss, Workspace
from lightning_modules.surgery.trained_parameters import Trained, select_parameters
from lightning_modules.training.objectives import EndToEnd


@STAGES.register("kl")
@dataclass
class KL:
    """Trains the replaced attention, or the whole model, to give the next-token distributions of a teacher.

    Args:
        train: `replaced` trains the attention of the replaced layers and the placed LoRA, `model` every weight.
        temperature: softens both distributions; more shows more of the unlikely tokens.
        teacher: folder or hub id of another model with the same vocabulary; None: the untouched model.
    """

    workspace: Workspace
    steps: Annotated[int, Ge(1)] | None = None
    lr: Annotated[float, Gt(0)] | None = None
    batch_size: Annotated[int, Ge(1)] | None = None
    train: Trained = "replaced"
    temperature: Annotated[float, Gt(0)] = 1.0
    teacher: str | None = None

    scope: ClassVar[str] = "model"

    @staticmethod
    def imitates(keys: Mapping[str, Any]) -> bool:
        return keys.get("teacher") is None

    def prepare(self, model: nn.Module) -> None:
        pass

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        shared = self.workspace
        return select_parameters(model, shared.surgery, shared.placement, self.train, shared.expansion)

    def start(self, model: nn.Module) -> None:
        self._objective = EndToEnd(
            model, self.workspace, self.steps * self.batch_size, "kl", self.temperature, self.teacher
        )

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Loss:
        return self._objective(model, batch)
