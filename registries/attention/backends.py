"""Softmax attention over depth slices with a score bias, computed in three ways that agree.

All ways work on flattened slices: a sequence of N positions with D slices each is an axis of N * D entries (entry
n * D + k is slice k of position n). `reference` is the definition; `sdpa` needs memory that grows with N * D only;
`flex` is compiled for CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

Backend = Literal["auto", "reference", "sdpa", "flex"]

# (offsets i - j of query and key positions, (n,)) -> (n, depth, depth), added to the scores of query slice k (axis 1)
# and key slice l (axis 2); -inf forbids. Hashable (a frozen dataclass), so that tables of biases can be cached.
ScoreBias = Callable[[Tensor], Tensor]


def no_bias(offsets: Tensor) -> Tensor:
    """The `ScoreBias` of plain attention, which is 0."""
    return torch.zeros(len(offsets), 1, 1, device=offsets.device)


# The fastest of several values on a CPU with AVX-512, by benchmarks/attention_cost.py: more rows waste work on keys
# that lie after them, fewer rows cost more calls. Kernels for slices narrower than 16 are slow (or missing, in flex):
# zero channels added up to 16 change nothing and take 0.6 times the time at depth 8 of a 64 wide head.
CHUNK_ROWS = 384
MIN_WIDTH = 16


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    bias: ScoreBias,
    scaling: float,
    depth: int,
    query_start: int,
    key_start: int,
    dropout: float = 0.0,
    backend: Backend = "auto",
) -> Tensor:
    """Attention of every slice of a query position over every slice of the positions it may see.

    Args:
        query: (batch, heads, queries * depth, slice width).
        key, value: (batch, key/value heads, keys * depth, slice width).
        mask: None for causal; else boolean (batch, 1, queries, keys) over positions.
        bias: see `ScoreBias`.
        scaling: factor on the dot products of two slices.
        query_start, key_start: positions of the first query and of the first key.
        dropout: probability of dropping an attention weight.

    Returns:
        (batch, heads, queries * depth, slice width).
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if backend == "auto":
        backend = "flex" if query.is_cuda else "sdpa"
    run = {"reference": _reference, "sdpa": _chunked_sdpa, "flex": _flex}[backend]
    width = query.shape[-1]
    if backend != "reference" and width < MIN_WIDTH:
        query, key, value = (pad(tensor, (0, MIN_WIDTH - width)) for tensor in (query, key, value))
    return run(query, key, value, mask, bias, scaling, depth, query_start, key_start, dropout)[..., :width]


def position_weights(
    query: Tensor,
    key: Tensor,
    *,
    mask: Tensor | None,
    bias: ScoreBias,
    scaling: float,
    depth: int,
    query_start: int,
    key_start: int,
) -> Tensor:
    """Attention weights of positions, (batch, heads, queries, keys); arguments as `attend`.

    The weights of two positions are summed over the key slices and averaged over the query slices, so rows sum to 1.
    """
    groups = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(groups, dim=1) if groups > 1 else key
    weights = _slice_weights(query, key, mask, bias, scaling, depth, query_start, key_start)
    return weights.unflatten(-1, (-1, depth)).sum(-1).unflatten(-2, (-1, depth)).mean(-2)


def _slice_weights(query, key, mask, bias, scaling, depth, query_start, key_start):
    shape = query.shape[2] // depth, key.shape[2] // depth, query_start - key_start
    causal = _offsets(*shape, query.device) >= 0
    allowed = _spread(causal[None, None] if mask is None else mask, depth)
    scores = query.float() @ key.float().transpose(-1, -2) * scaling + _spread_bias(bias, *shape, query.device)
    # The lowest finite number instead of -inf: a padding query that may see nothing gets an average, not NaN.
    return scores.masked_fill(~allowed, -torch.inf).clamp_min(torch.finfo(torch.float32).min).softmax(-1)


def _reference(query, key, value, mask, bias, scaling, depth, query_start, key_start, dropout):
    weights = _slice_weights(query, key, mask, bias, scaling, depth, query_start, key_start)
    return torch.dropout(weights, dropout, dropout > 0).to(value.dtype) @ value


def _chunked_sdpa(query, key, value, mask, bias, scaling, depth, query_start, key_start, dropout):
    queries, chunk = query.shape[2] // depth, _chunk(depth)
    chunks = []
    for start in range(0, queries, chunk):
        stop = min(start + chunk, queries)
        if mask is None:
            end = query_start + stop - key_start  # no key lies after the chunk's last query
            chunk_bias = _causal_bias(bias, stop - start, end, query.device, query.dtype)
        else:
            chunk_mask = mask[:, :, start:stop]
            end = _visible_end(chunk_mask)
            chunk_bias = _spread_bias(bias, stop - start, end, query_start + start - key_start, query.device)
            chunk_bias = chunk_bias.masked_fill(~_spread(chunk_mask[..., :end], depth), -torch.inf)
            chunk_bias = chunk_bias.to(query.dtype).clamp_min(torch.finfo(query.dtype).min)
        chunks.append(
            scaled_dot_product_attention(
                query[:, :, start * depth : stop * depth],
                key[:, :, : end * depth],
                value[:, :, : end * depth],
                attn_mask=chunk_bias,
                dropout_p=dropout,
                scale=scaling,
            )
        )
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=2)


def _flex(query, key, value, mask, bias, scaling, depth, query_start, key_start, dropout):
    from torch.nn.attention.flex_attention import create_block_mask

    if dropout:
        raise ValueError("backend 'flex' cannot drop attention weights; use backend='sdpa' or dropout=0")
    queries, keys = query.shape[2] // depth, key.shape[2] // depth
    shift = query_start - key_start
    table = bias(torch.arange(shift - keys + 1, shift + queries, device=query.device)).to(query.dtype)

    def score(value, batch, head, query_entry, key_entry):
        row = query_entry // depth - key_entry // depth + keys - 1
        return value + table[row, query_entry % depth, key_entry % depth]

    def visible(batch, head, query_entry, key_entry):
        if mask is None:
            return query_entry // depth + shift >= key_entry // depth
        return mask[batch, 0, query_entry // depth, key_entry // depth]

    blocks = create_block_mask(
        visible, None if mask is None else mask.shape[0], None, queries * depth, keys * depth, device=query.device
    )
    run = _compiled_flex_attention() if query.is_cuda else _flex_attention()
    return run(query, key, value, score_mod=score, block_mask=blocks, scale=scaling)


def _flex_attention():
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@lru_cache(maxsize=1)
def _compiled_flex_attention():
    return torch.compile(_flex_attention(), dynamic=False)


def _chunk(depth: int) -> int:
    """The number of query positions that are computed together."""
    return max(32, min(128, CHUNK_ROWS // depth))


def _offsets(queries: int, keys: int, shift: int, device: torch.device) -> Tensor:
    """(queries, keys): query position minus key position; the first query lies `shift` after the first key."""
    return torch.arange(queries, device=device)[:, None] + shift - torch.arange(keys, device=device)[None, :]


def _spread(mask: Tensor, depth: int) -> Tensor:
    """A mask over positions (..., queries, keys) as a mask over slices (..., queries * depth, keys * depth)."""
    return mask.repeat_interleave(depth, dim=-2).repeat_interleave(depth, dim=-1)


def _spread_bias(bias: ScoreBias, queries: int, keys: int, shift: int, device: torch.device) -> Tensor:
    """The bias of all slices, (queries * depth, keys * depth); arguments as `_offsets`."""
    lowest = shift - keys + 1
    table = bias(torch.arange(lowest, shift + queries, device=device))
    offsets = _offsets(queries, keys, shift, device)
    return table[offsets - lowest].transpose(1, 2).flatten(2).flatten(0, 1)


def _causal_bias(bias: ScoreBias, queries: int, keys: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Bias and causal mask, (queries * depth, keys * depth), of the last `queries` (one chunk or less) of `keys`.

    They depend on distances only, so every chunk is a view of one table, its lower right corner.
    """
    table, depth = _causal_table(bias, -(-keys // 512) * 512, device, dtype)
    return table[-queries * depth :, -keys * depth :]


@lru_cache(maxsize=8)  # shared by all layers and steps
def _causal_table(bias: ScoreBias, keys: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, int]:
    with torch.no_grad():
        depth = bias(torch.zeros(1, dtype=torch.long)).shape[-1]
        rows = _chunk(depth)
        table = _spread_bias(bias, rows, keys, keys - rows, device)
        causal = _offsets(rows, keys, keys - rows, device) >= 0
        return table.masked_fill(~_spread(causal, depth), -torch.inf).to(dtype), depth


def _visible_end(mask: Tensor) -> int:
    """One more than the index of the last key that any query may see; at least 1."""
    visible = mask.flatten(0, -2).any(dim=0).nonzero()
    return int(visible[-1]) + 1 if len(visible) else 1
