"""A trained map of low rank on top of a fixed one."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from registries import ADAPTERS
from registries.adapters.closed_form import AffineMap, Start, fitted_start, start_errors
from registries.adapters.moments import Pairs, gather
from registries.adapters.units import Units


def _errors(start: Start, rank: int, source_width: int, target_width: int) -> list[str]:
    errors, most = start_errors(start, source_width, target_width), min(source_width, target_width)
    if rank > most:
        errors.append(f"adapter.rank={rank} is above the narrower width of the two models; at most {most}")
    return errors


@ADAPTERS.register("lora", check=_errors)
class LowRank(nn.Module):
    """start(states) + alpha / rank * states A B (Hu et al., 2021), with B = 0 at first, so that it begins as its start.

    Args:
        rank: rank of the learned map, which has rank * (source width + target width) parameters.
        alpha: the learned map is scaled by alpha / rank.
        start: the fixed map.
    """

    def __init__(
        self,
        source_width: int,
        target_width: int,
        rank: Annotated[int, Ge(1)] = 8,
        alpha: Annotated[float, Gt(0)] = 16.0,
        start: Start = "procrustes",
    ):
        super().__init__()
        self.start, self.scale = start, alpha / rank
        self.units = Units()
        self.fixed = AffineMap(source_width, target_width)
        self.down = nn.Linear(source_width, rank, bias=False)
        self.up = nn.Linear(rank, target_width, bias=False)
        nn.init.zeros_(self.up.weight)

    @torch.no_grad()
    def fit(self, pairs: Pairs) -> None:
        """Measure the units, and find the fixed map."""
        statistics = gather(pairs)
        self.units.fit(statistics)
        start = fitted_start(self.start, self.down.in_features, self.up.out_features, statistics)
        self.fixed.load_state_dict(start.state_dict())

    def forward(self, states: Tensor) -> Tensor:
        return self.fixed(states) + self.scale * self.units.run(lambda scaled: self.up(self.down(scaled)), states)
