"""Next-token training: the negative log-likelihood of the text."""

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


@STAGES.register("next_token")
@dataclass
class NextToken:
    """Trains the replaced attention, or the whole model, to predict the text.

    Args:
        train: `replaced` trains the attention of the replaced layers, the placed LoRA and what an expansion added;
            `model` every weight.
    """

    workspace: Workspace
    steps: Annotated[int, Ge(1)] | None = None
    lr: Annotated[float, Gt(0)] | None = None
    batch_size: Annotated[int, Ge(1)] | None = None
    train: Trained = "replaced"

    scope: ClassVar[str] = "model"

    @staticmethod
    def imitates(keys: Mapping[str, Any]) -> bool:
        return False

    def prepare(self, model: nn.Module) -> None:
        pass

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        shared = self.workspace
        return select_parameters(model, shared.surgery, shared.placement, self.train, shared.expansion)

    def start(self, model: nn.Module) -> None:
        self._objective = EndToEnd(model, self.workspace, self.steps * self.batch_size)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Loss:
        return self._objective(model, batch)
