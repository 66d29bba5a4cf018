"""Neighbouring states mixed by a convolution, then each soft token the mean of a stretch."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from registries import COMPRESSORS
from registries.compressors.pooling import stretches


def _errors(kernel: int) -> list[str]:
    return [] if kernel % 2 else [f"compressor.kernel={kernel} is even: an odd one has a middle"]


@COMPRESSORS.register("convolution", check=_errors)
class Convolution(nn.Module):
    """A depthwise convolution over the states, a feed-forward layer, and the mean of each stretch.

    Args:
        kernel: number of states that are mixed; odd.
        width: width between the two linear layers.
    """

    def __init__(
        self,
        source_width: int,
        target_width: int,
        tokens: int,
        kernel: Annotated[int, Ge(1)] = 5,
        width: Annotated[int, Ge(1)] = 256,
    ):
        super().__init__()
        self.tokens = tokens
        self.mix = nn.Conv1d(source_width, source_width, kernel, padding=kernel // 2, groups=source_width)
        self.outward = nn.Sequential(nn.Linear(source_width, width), nn.GELU(), nn.Linear(width, target_width))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        states = states * mask[..., None]
        mixed = self.outward(states + self.mix(states.transpose(1, 2)).transpose(1, 2))
        share = stretches(mask, self.tokens).to(mixed.dtype)
        return share / share.sum(-1, keepdim=True).clamp(min=1) @ mixed
