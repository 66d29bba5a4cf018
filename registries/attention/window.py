"""A sliding window on a ring: attention to the positions at most `window` steps away, the long way round included."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from registries import ATTENTION
from registries.architectures import AttentionShape
from registries.attention.backends import Backend, attend, position_weights


@dataclass(frozen=True)
class CircularWindow:
    """0 within `window` steps on a ring of `period` positions, -inf beyond."""

    window: int
    period: int

    def __call__(self, offsets: Tensor) -> Tensor:
        steps = offsets.remainder(self.period)
        near = torch.minimum(steps, self.period - steps) <= self.window
        return torch.zeros(len(offsets), 1, 1, device=offsets.device).masked_fill(~near[:, None, None], -torch.inf)


@ATTENTION.register("window")
class WindowAttention(nn.Module):
    """Causal attention to the positions within a window that wraps: min(t, P - t) <= window for t = (i - j) mod P.

    Args:
        shape: dimensions of the layer.
        window: steps on the ring that a query can look; from period / 2 on, attention is full.
        period: length of the ring, in positions.
        backend: way of computing; all give the same result.
    """

    own_positions = False
    keeps_function = False

    def __init__(
        self,
        shape: AttentionShape,
        window: Annotated[int, Ge(0)] = 256,
        period: Annotated[int, Ge(2)] = 2048,
        backend: Backend = "auto",
    ):
        super().__init__()
        self.score_bias, self.backend = CircularWindow(window, period), backend

    def forward(self, query, key, value, mask, scaling, query_start, key_start):
        scores = self._scores(mask, scaling, query_start, key_start)
        return attend(query, key, value, **scores, backend=self.backend)

    def weights(self, query, key, mask, scaling, query_start, key_start):
        """Attention weights, (batch, heads, queries, keys)."""
        return position_weights(query, key, **self._scores(mask, scaling, query_start, key_start))

    def _scores(self, mask, scaling, query_start, key_start) -> dict[str, Any]:
        starts = {"query_start": query_start, "key_start": key_start}
        return {"mask": mask, "bias": self.score_bias, "scaling": scaling, "depth": 1, **starts}
