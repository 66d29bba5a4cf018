"""Toroidal attention: positions on a ring of fixed period, every head cut into depth slices that attend jointly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from registries import ATTENTION
from registries.architectures import AttentionShape
from registries.attention.backends import Backend, attend, position_weights
from registries.attention.fusion import DepthFusion, FusionMode

Frequencies = Literal["interleaved", "neighbouring"]


@dataclass(frozen=True)
class ToroidalDistance:
    """Score bias -lambda * (min(t, P - t) / P + |k - l| / D) of two slices t = (i - j) mod P positions apart.

    The period P is fixed, so that a score does not depend on the current length (cached decoding would break).
    """

    weight: float
    period: int
    depth: int

    def __call__(self, offsets: Tensor) -> Tensor:
        steps = offsets.remainder(self.period)
        ring_distance = torch.minimum(steps, self.period - steps) / self.period
        slices = torch.arange(self.depth, device=offsets.device)
        depth_distance = (slices[:, None] - slices[None, :]).abs() / self.depth
        return -self.weight * (ring_distance[:, None, None] + depth_distance)


def legal_depths(shape: AttentionShape) -> list[int]:
    """Depths that cut a head into equal slices of whole rotary pairs: divisors of the pairs and the other channels."""
    pairs, unrotated = shape.rotary_width // 2, shape.head_width - shape.rotary_width
    common = math.gcd(pairs, unrotated)  # gcd(n, 0) = n
    return [depth for depth in range(1, common + 1) if common % depth == 0]


def option_errors(
    shape: AttentionShape, depth: int, position: str, fusion_rank: int | None, backend: str, dropout: float
):
    """Messages about options that do not fit a layer of this shape."""
    allowed = legal_depths(shape)
    errors = []
    if depth not in allowed:
        errors.append(
            f"replacement.depth={depth} does not cut this model's heads (width {shape.head_width}, of which "
            f"{shape.rotary_width} rotary) into equal slices of whole rotary pairs. Allowed: {allowed}"
        )
    if position == "toroidal" and 1 < depth == shape.rotary_width // 2:
        errors.append(
            f"replacement.position=toroidal needs two rotary pairs in a slice, one for the sequence and one for the "
            f"depth; depth={depth} leaves one. Allowed: {[d for d in allowed if d < depth]}"
        )
    if fusion_rank is not None and fusion_rank > depth:
        errors.append(f"replacement.fusion_rank={fusion_rank} is above the depth. Allowed: 1 to {depth}")
    if backend == "flex" and not torch.cuda.is_available():
        errors.append("replacement.backend=flex needs a CUDA device. Allowed here: auto, reference, sdpa")
    if backend == "flex" and dropout:
        errors.append("replacement.backend=flex cannot drop attention weights. Use backend=sdpa or dropout=0")
    return errors


@ATTENTION.register("toroidal", check=option_errors)
class ToroidalAttention(nn.Module):
    """Joint causal attention of all depth slices of all earlier positions, with a distance on a torus as bias.

    Each head's channels are cut into `depth` slices, whole rotary pairs in a slice; values and output keep the
    original channel order. With depth 1 and lambda 0 it is the model's own attention.

    Args:
        shape: dimensions of the layer.
        depth: slices of a head.
        frequencies: which rotary frequencies a slice gets, see `slice_order`.
        lambda_distance: weight of the distance, in logits (the sequence part of the distance is at most 0.5).
        fusion_mode: how the depth slices of the output are mixed, see `DepthFusion`.
        fusion_rank: rank of that mixing; default max(1, depth // 4).
        fusion_residual: False gives the original low-rank fusion, without the identity.
        period: length of the ring, in positions.
        position: `model` keeps the model's position codes; `toroidal` replaces them by codes that wrap at the period.
        temperature: learn one temperature per head.
        dropout: probability of dropping an attention weight in training.
        backend: way of computing; all give the same result.
    """

    def __init__(
        self,
        shape: AttentionShape,
        depth: Annotated[int, Ge(1)] = 2,
        frequencies: Frequencies = "interleaved",
        lambda_distance: Annotated[float, Ge(0)] = 0.1,
        fusion_mode: FusionMode = "low_rank",
        fusion_rank: Annotated[int, Ge(1)] | None = None,
        fusion_residual: bool = True,
        period: Annotated[int, Ge(2)] = 2048,
        position: Literal["model", "toroidal"] = "model",
        temperature: bool = False,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
        backend: Backend = "auto",
    ):
        super().__init__()
        self.depth, self.backend, self.dropout = depth, backend, dropout
        self.score_bias = ToroidalDistance(lambda_distance, period, depth)
        self.fusion = DepthFusion(depth, shape.head_width, fusion_mode, fusion_rank, fusion_residual)
        self.log_temperature = nn.Parameter(torch.zeros(shape.num_heads)) if temperature else None
        self.register_buffer("slice_order", slice_order(shape, depth, frequencies), persistent=False)
        self.own_positions = position == "toroidal" and shape.rotary_width > 0
        self.notes = []
        if position == "toroidal" and not self.own_positions:
            self.notes = ["adds learned positions to the embeddings: they stay, position=toroidal adds nothing"]
        if self.own_positions:
            self.codes = ToroidalPositions(shape, depth, period)
        unmixed = fusion_mode != "low_rank" or fusion_residual  # with one slice, every other fusion is the identity
        self.keeps_function = depth == 1 and lambda_distance == 0 and unmixed and not self.own_positions

    def forward(self, query, key, value, mask, scaling, query_start, key_start):
        output = attend(
            *self._query_key(query, key, query_start, key_start),
            value.unflatten(-1, (self.depth, -1)).flatten(2, 3),
            **self._scores(mask, scaling, query_start, key_start),
            dropout=self.dropout if self.training else 0.0,
            backend=self.backend,
        )
        return self.fusion(output.unflatten(2, (-1, self.depth)).flatten(3))

    def weights(self, query, key, mask, scaling, query_start, key_start):
        """Attention weights of positions, (batch, heads, queries, keys)."""
        return position_weights(
            *self._query_key(query, key, query_start, key_start),
            **self._scores(mask, scaling, query_start, key_start),
        )

    def _scores(self, mask, scaling, query_start, key_start) -> dict[str, Any]:
        return {
            "mask": mask,
            "bias": self.score_bias,
            "scaling": scaling * math.sqrt(self.depth),  # a slice has 1 / depth of the head's channels
            "depth": self.depth,
            "query_start": query_start,
            "key_start": key_start,
        }

    def _query_key(self, query: Tensor, key: Tensor, query_start: int, key_start: int) -> tuple[Tensor, Tensor]:
        query, key = self._slices(query, query_start), self._slices(key, key_start)
        if self.log_temperature is not None:
            query = query * (-self.log_temperature).exp()[:, None, None].to(query.dtype)
        return query, key

    def _slices(self, states: Tensor, start: int) -> Tensor:
        """(batch, heads, length, head width) -> (batch, heads, length * depth, slice width)."""
        if self.depth > 1 or self.own_positions:
            states = states[..., self.slice_order]
        states = states.unflatten(-1, (self.depth, -1))
        if self.own_positions:
            states = self.codes(states, start)
        return states.flatten(2, 3)


def slice_order(shape: AttentionShape, depth: int, frequencies: Frequencies) -> Tensor:
    """(head width,): the channel order that puts slice after slice.

    A slice holds the first halves of its rotary pairs, their second halves, and its unrotated channels.

    Args:
        frequencies: `interleaved`: the pairs are dealt out like cards, so that every slice can tell near from far
            positions; `neighbouring`: the first slice gets the fastest pairs and the last one the slowest. See
            docs/results/attention_replacement.md for the worth of both.
    """
    half = shape.rotary_width // 2
    pairs = torch.arange(half)
    pairs = pairs.unflatten(0, (depth, -1)) if frequencies == "neighbouring" else pairs.unflatten(0, (-1, depth)).T
    unrotated = torch.arange(shape.rotary_width, shape.head_width).unflatten(0, (depth, -1))
    return torch.cat([pairs, pairs + half, unrotated], dim=1).flatten()


class ToroidalPositions(nn.Module):
    """Rotary codes of a torus: pair m of slice k at position i is turned by 2 pi (n_m i / P + p_m k / D).

    The harmonics n_m are integers (near the model's own frequencies), so that position i + P has the code of position
    i. They are the same in every slice, so that the score of any two slices depends on the offset of their positions
    alone, and padding cannot shift it. The last pair of a slice turns with the depth alone (p = 1, n = 0), all others
    with the position alone, so that the two bases are orthogonal: <n, p> = 0.
    """

    def __init__(self, shape: AttentionShape, depth: int, period: int):
        super().__init__()
        self.depth, self.period = depth, period
        pairs = torch.arange(0, shape.rotary_width // 2, depth, dtype=torch.float64)  # the pairs of one slice
        frequencies = shape.rotary_base ** (-pairs * 2 / shape.rotary_width)
        harmonics = (frequencies * period / (2 * math.pi)).round().clamp(1, period // 2).long()
        depth_harmonics = torch.zeros_like(harmonics)
        if depth > 1:
            harmonics[-1], depth_harmonics[-1] = 0, 1
        # Integers, so that a change of the module's dtype cannot round them.
        self.register_buffer("harmonics", harmonics, persistent=False)
        self.register_buffer("depth_harmonics", depth_harmonics, persistent=False)

    def forward(self, states: Tensor, start: int) -> Tensor:
        """Turn (batch, heads, length, depth, slice width) of the positions from `start` on."""
        positions = torch.arange(start, start + states.shape[2], device=states.device)
        slices = torch.arange(self.depth, device=states.device)[:, None]
        turns = (positions[:, None, None] * self.harmonics % self.period) / self.period
        angles = 2 * math.pi * (turns + self.depth_harmonics * slices / self.depth)
        cos, sin = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
        half = len(self.harmonics)
        first, second, unrotated = states.split([half, half, states.shape[-1] - 2 * half], dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin, unrotated], dim=-1)
