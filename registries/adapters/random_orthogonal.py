"""A random rotation: the worth of the right mean and the right scale alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from registries import ADAPTERS
from registries.adapters.closed_form import AffineMap
from registries.adapters.moments import Pairs, gather


@ADAPTERS.register("random_orthogonal")
class RandomOrthogonal(nn.Module):
    """A random (semi-)orthogonal matrix between the centred states, with the target's mean and variance."""

    trained = False

    def __init__(self, source_width: int, target_width: int):
        super().__init__()
        self.map = AffineMap(source_width, target_width)
        nn.init.orthogonal_(self.map.weight)

    def fit(self, pairs: Pairs) -> None:
        """Find means and scale."""
        moments = gather(pairs).everything
        means = moments.means()
        scatter, rotation = moments.about(*means), self.map.weight.double()
        spread = torch.einsum("ij,ik,kj->", rotation, scatter.xx, rotation)  # sum of squares of the rotated states
        self.map.set(rotation * (scatter.yy / spread.clamp(min=1e-30)).sqrt(), *means)

    def forward(self, states: Tensor) -> Tensor:
        return self.map(states)
