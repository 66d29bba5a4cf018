"""What adapters that are trained share: units in which states of any model have size one."""

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
        """Measure them."""
        found = gather(pairs).everything
        for name, total, width in (("source", found.xx.trace(), len(found.x)), ("target", found.yy, len(found.y))):
            getattr(self, name).copy_((total / (found.rows * width)).sqrt().clamp(min=1e-12))

    def around(self, module: nn.Module, states: Tensor) -> Tensor:
        """What a module that works in these units makes of states."""
        return (module(states.to(self.source.dtype) / self.source) * self.target).to(states.dtype)
