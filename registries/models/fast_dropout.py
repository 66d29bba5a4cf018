"""Dropout that draws four entries from each number of the generator: to draw one costs a tenth of a training step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FastDropout(nn.Module):
    """As torch's Dropout; the share is rounded to a multiple of 2^-16.

    Args:
        p: share of the entries that training sets to 0; the others are multiplied by 1 / (1 - p).
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, states: Tensor) -> Tensor:
        masks = self.masks(states, *states.shape)
        return states if masks is None else states * masks

    def masks(self, like: Tensor, *shape: int) -> Tensor | None:
        """What entries of this shape are multiplied by, in the dtype and on the device of `like`; None: by nothing."""
        if not self.training or not self.p:
            return None
        return dropped(shape, self.p, like.device).to(like.dtype).mul_(1 / (1 - self.p))


def dropped(shape: Sequence[int], share: float, device: torch.device | None = None) -> Tensor:
    """False for a share of the entries, at random."""
    count = math.prod(shape)
    bits = torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(-(2**63), None)
    return bits.view(torch.int16)[:count].view(*shape) >= round(share * 2**16) - 2**15
