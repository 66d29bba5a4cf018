"""A matrix, with or without a shift, trained by gradient descent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from registries import ADAPTERS
from registries.adapters.closed_form import Start, fitted_start, start_errors
from registries.adapters.moments import Pairs, gather
from registries.adapters.units import Units


class Projection(nn.Module):
    """A trained matrix of (target width, source width), and a trained shift if `bias`."""

    def __init__(self, source_width: int, target_width: int, bias: bool, start: Start | None):
        super().__init__()
        self.start = start
        self.units = Units()
        self.projection = nn.Linear(source_width, target_width, bias)
        if bias:
            nn.init.zeros_(self.projection.bias)

    @torch.no_grad()
    def fit(self, pairs: Pairs) -> None:
        """Measure the units, and take over the start."""
        statistics = gather(pairs)
        self.units.fit(statistics)
        if self.start is None:
            return
        layer = self.projection
        sizes, centre = (layer.in_features, layer.out_features), layer.bias is not None
        start = fitted_start(self.start, *sizes, statistics, centre)
        layer.weight.copy_(start.weight.T * (self.units.source / self.units.target))
        if layer.bias is not None:
            layer.bias.copy_((start.target_mean - start.source_mean @ start.weight) / self.units.target)

    def forward(self, states: Tensor) -> Tensor:
        return self.units.run(self.projection, states)


@ADAPTERS.register("linear", check=start_errors)
def linear(source_width: int, target_width: int, start: Start | None = None) -> nn.Module:
    """A trained matrix without a shift; from random weights (He et al., 2015) or a closed form without means."""
    return Projection(source_width, target_width, False, start)


@ADAPTERS.register("affine", check=start_errors)
def affine(source_width: int, target_width: int, start: Start | None = None) -> nn.Module:
    """A trained matrix with a trained shift that starts at zero, or from a closed form."""
    return Projection(source_width, target_width, True, start)
