"""Each soft token from a stretch of the text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from registries import COMPRESSORS


def stretches(mask: Tensor, tokens: int) -> Tensor:
    """(batch, tokens, length): whether each state lies in the stretch of each token; they are as equal as possible.

    Where a text has fewer states than tokens, some states belong to several tokens.
    """
    lengths = mask.sum(1, keepdim=True)
    order = torch.arange(tokens, device=mask.device)[None]
    start = order * lengths // tokens
    stop = torch.maximum((order + 1) * lengths // tokens, start + 1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    inside = (positions >= start[..., None]) & (positions < stop[..., None])
    return inside & mask[:, None]


@COMPRESSORS.register("pooling")
class Pooling(nn.Module):
    """The weighted mean of a stretch, with learned weights, and a linear layer."""

    def __init__(self, source_width: int, target_width: int, tokens: int):
        super().__init__()
        self.tokens = tokens
        self.weight = nn.Linear(source_width, 1)
        self.outward = nn.Linear(source_width, target_width)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        scores = self.weight(states).transpose(1, 2).masked_fill(~stretches(mask, self.tokens), float("-inf"))
        return self.outward(scores.softmax(-1) @ states)
