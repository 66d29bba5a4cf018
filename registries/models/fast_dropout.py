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

    @property
    def scale(self) -> float:
        """What the entries that are not dropped are multiplied by."""
        return 1 / (1 - self.p) if self.training else 1.0

    def forward(self, states: Tensor) -> Tensor:
        mask = self.mask(states.device, *states.shape)
        return states if mask is None else states * (mask * self.scale)

    def mask(self, device: torch.device, *shape: int) -> Tensor | None:
        """False for the entries to be dropped; None: none are."""
        return dropped(shape, self.p, device) if self.training and self.p else None


def dropped(shape: Sequence[int], share: float, device: torch.device | None = None) -> Tensor:
    """False for a share of the entries, at random."""
    count = math.prod(shape)
    bits = torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(-(2**63), None)
    return bits.view(torch.int16)[:count].view(*shape) >= round(share * 2**16) - 2**15
