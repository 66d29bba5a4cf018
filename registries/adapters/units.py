"""The units of trained adapters, in which states of any model have size one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from registries.adapters.moments import Pairs, gather


class Units(nn.Module):
    """Root mean squares of the source's and of the target's entries, so that one learning rate fits all models."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("source", torch.ones(()))
        self.register_buffer("target", torch.ones(()))

    def fit(self, pairs: Pairs) -> None:
        """Measure the units."""
        moments = gather(pairs).everything
        totals = {"source": (moments.xx.trace(), moments.x), "target": (moments.yy, moments.y)}
        for name, (total, sums) in totals.items():
            getattr(self, name).copy_((total / (moments.rows * len(sums))).sqrt().clamp(min=1e-12))

    def run(self, module: nn.Module, states: Tensor) -> Tensor:
        """The output for states of a module that computes in these units."""
        return (module(states.to(self.source.dtype) / self.source) * self.target).to(states.dtype)
