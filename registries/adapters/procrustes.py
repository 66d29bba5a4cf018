"""Orthogonal Procrustes: the rotation that brings one model's states nearest to those of another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from registries import ADAPTERS
from registries.adapters.closed_form import AffineMap
from registries.adapters.moments import Pairs, gather


@ADAPTERS.register("procrustes")
class Procrustes(nn.Module):
    """The (semi-)orthogonal map between centred states with the least-squares scale.

    With x'y = U S V' (Schoenemann, 1966) the map is U V', and the scale that minimises the squared error is
    sum(S) / |x U V'|^2. Between equal widths it leaves every rotation-invariant similarity as it is.

    Args:
        centre: subtract the means first, and add the target's.
    """

    trained = False

    def __init__(self, source_width: int, target_width: int, centre: bool = True):
        super().__init__()
        self.centre = centre
        self.map = AffineMap(source_width, target_width)

    def fit(self, pairs: Pairs) -> None:
        """Find means, rotation and scale."""
        moments = gather(pairs).everything
        means = moments.means(self.centre)
        scatter = moments.about(*means)
        left, singular, right = torch.linalg.svd(scatter.xy, full_matrices=False)
        rotation = left @ right
        spread = torch.einsum("ij,ik,kj->", rotation, scatter.xx, rotation)
        self.map.set(rotation * (singular.sum() / spread.clamp(min=1e-30)), *means)

    def forward(self, states: Tensor) -> Tensor:
        return self.map(states)
