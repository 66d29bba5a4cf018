"""Ridge regression: the affine map of least squares, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from registries import ADAPTERS
from registries.adapters.closed_form import AffineMap
from registries.adapters.moments import Pairs, gather

STRENGTHS = [10.0 ** (power / 2) for power in range(-16, 5)]  # of the mean variance of a source channel


@ADAPTERS.register("ridge")
class Ridge(nn.Module):
    """(x'x + strength I)^-1 x'y between centred states (Hoerl and Kennard, 1970).

    The strength is the one with the least squared error on held-out rows; then the map is fitted on all rows.

    Args:
        centre: subtract the means first, and add the target's.
    """

    trained = False

    def __init__(self, source_width: int, target_width: int, centre: bool = True):
        super().__init__()
        self.centre = centre
        self.map = AffineMap(source_width, target_width)
        self.register_buffer("strength", torch.zeros((), dtype=torch.float64))

    def fit(self, pairs: Pairs) -> None:
        """Find means, strength and weights."""
        statistics = gather(pairs)
        fitted, held_out = statistics
        means = fitted.means(self.centre)
        scatter, unseen = fitted.about(*means), held_out.about(*means)
        values, vectors = torch.linalg.eigh(scatter.xx)
        turned = vectors.T @ scatter.xy
        variance = values.clamp(min=0).mean().clamp(min=1e-30)

        def error(strength: float) -> float:
            weight = vectors @ (turned / (values.clamp(min=0) + strength * variance)[:, None])
            return (((unseen.xx @ weight) * weight).sum() - 2 * (weight * unseen.xy).sum() + unseen.yy).item()

        self.strength.fill_(min(STRENGTHS, key=error))
        everything = statistics.everything
        means = everything.means(self.centre)
        scatter = everything.about(*means)
        shift = self.strength * scatter.xx.diagonal().mean().clamp(min=1e-30)
        lifted = scatter.xx + shift * torch.eye(len(scatter.xx), dtype=torch.float64, device=scatter.xx.device)
        self.map.set(torch.linalg.solve(lifted, scatter.xy), *means)

    def forward(self, states: Tensor) -> Tensor:
        return self.map(states)
