"""The identity: the worth of a model's states, unchanged, to another model of the same width."""

from __future__ import annotations

from torch import Tensor, nn

from registries import ADAPTERS
from registries.adapters.closed_form import equal_widths
from registries.adapters.moments import Pairs


@ADAPTERS.register("identity", check=equal_widths)
class Identity(nn.Module):
    """Hands the source's states on as they are."""

    trained = False

    def __init__(self, source_width: int, target_width: int):
        super().__init__()

    def fit(self, pairs: Pairs) -> None:
        """There is nothing to fit."""

    def forward(self, states: Tensor) -> Tensor:
        return states
