"""A trained network of two layers."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from registries import ADAPTERS
from registries.adapters.closed_form import AffineMap, Start, fitted_start, start_errors
from registries.adapters.moments import Pairs, gather
from registries.adapters.units import Units


@ADAPTERS.register("mlp", check=start_errors)
class MLP(nn.Module):
    """Two trained linear layers with a GELU between them, on top of a fixed start where there is one.

    Args:
        hidden_width: width between the two layers; None: the target's width.
        start: a fixed map to which the network adds, whose last layer is then zero at first; None: the network alone.
    """

    def __init__(
        self,
        source_width: int,
        target_width: int,
        hidden_width: Annotated[int, Ge(1)] | None = None,
        start: Start | None = "ridge",
    ):
        super().__init__()
        self.start, self.widths = start, (source_width, target_width)
        hidden_width = hidden_width or target_width
        self.units = Units()
        self.fixed = AffineMap(source_width, target_width)  # zero without a start
        self.network = nn.Sequential(
            nn.Linear(source_width, hidden_width), nn.GELU(), nn.Linear(hidden_width, target_width)
        )
        if start is not None:
            nn.init.zeros_(self.network[-1].weight)
            nn.init.zeros_(self.network[-1].bias)

    @torch.no_grad()
    def fit(self, pairs: Pairs) -> None:
        """Measure the units, and find the fixed map."""
        statistics = gather(pairs)
        self.units.fit(statistics)
        if self.start is not None:
            self.fixed.load_state_dict(fitted_start(self.start, *self.widths, statistics).state_dict())

    def forward(self, states: Tensor) -> Tensor:
        return self.fixed(states) + self.units.run(self.network, states)
