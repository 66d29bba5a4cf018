"""The training of a submodule that a study has put into the model, such as what lies between two models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from lightning_modules.stages.stage import Workspace


@dataclass
class SubmoduleTraining:
    """All of a `Stage` but its loss, which subclasses give.

    Attributes:
        workspace, steps, lr, batch_size: see `Stage`.
        submodule: the name of what is trained.
    """

    workspace: Workspace
    steps: int
    lr: float
    batch_size: int

    submodule: ClassVar[str]
    scope: ClassVar = "model"

    @staticmethod
    def imitates(keys: Mapping[str, Any]) -> bool:
        """False: the untouched model has no such submodule, so it cannot be the target of this training."""
        return False

    def prepare(self, model: nn.Module) -> None:
        """The study has put the submodule there."""

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The submodule's parameters."""
        return dict(model.get_submodule(self.submodule).named_parameters(prefix=self.submodule))

    def start(self, model: nn.Module) -> None:
        """The study has made room for what is read."""
