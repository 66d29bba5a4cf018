"""What is trained in which order after surgery. A stage is an objective with what it trains and for how long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

from registries.registry import Registry

STAGES = Registry("recovery stage", package="lightning_modules.stages")


class Stage(Protocol):
    """One stage of training.

    Attributes:
        steps: optimizer steps.
        blocks_per_step: blocks that one step sees.
        blocks_per_pass: blocks of one forward pass; a step's gradients are summed over its passes.
        lr: peak learning rate.
    """

    steps: int
    blocks_per_step: int
    blocks_per_pass: int
    lr: float

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Full name -> parameter of exactly what this stage trains."""
        ...

    def loss(self, model: nn.Module, input_ids: Tensor) -> tuple[Tensor, int]:
        """Sum of the loss over a batch (batch, length), and how many terms it sums (tokens)."""
        ...
