"""The target's mean state at every position: the worth of the target's remaining layers without any states."""

from __future__ import annotations

from torch import Tensor, nn

from registries import ADAPTERS
from registries.adapters.closed_form import AffineMap
from registries.adapters.moments import Pairs, gather


@ADAPTERS.register("mean")
class Mean(nn.Module):
    """The target's mean state, whatever the source's is: the floor of every comparison."""

    trained = False

    def __init__(self, source_width: int, target_width: int):
        super().__init__()
        self.map = AffineMap(source_width, target_width)

    def fit(self, pairs: Pairs) -> None:
        """Find the mean."""
        self.map.set(self.map.weight, *gather(pairs).everything.means())

    def forward(self, states: Tensor) -> Tensor:
        return self.map(states)
