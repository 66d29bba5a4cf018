"""Hosts an attention core inside a model's own attention layer, through transformers' attention interface.

The layer keeps its projections, biases, norms, rotary codes and its use of the KV cache; only the function between
the projections is replaced, by a config copy that names it. Other layers and other models are not touched.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from registries.attention.core import AttentionCore

IMPLEMENTATION = "graftlab_core"


@dataclass(frozen=True)
class HostCall:
    """What travels from the start of a layer's call to its attention function and its end."""

    query_start: int
    key_start: int
    dtype: torch.dtype


def host(attention: nn.Module, core: AttentionCore) -> None:
    """Make `attention` (a layer of a transformers causal LM) attend through `core`, which becomes `attention.core`."""
    from transformers import AttentionInterface  # takes seconds, and a config is checked without it

    AttentionInterface.register(IMPLEMENTATION, _attend)
    attention.config = copy.copy(attention.config)
    attention.config._attn_implementation = IMPLEMENTATION
    attention.core = core
    attention.register_forward_pre_hook(_prepare, with_kwargs=True)
    attention.register_forward_hook(_restore_dtype, with_kwargs=True)


def _prepare(attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Before the layer runs: work out positions, take out rotary codes for a core with its own, match dtypes."""
    hidden = args[0] if args else kwargs["hidden_states"]
    dtype = next(attention.parameters()).dtype
    kwargs = dict(kwargs)
    if args:
        args = (hidden.to(dtype), *args[1:])
    else:
        kwargs["hidden_states"] = hidden.to(dtype)
    kwargs["host_call"] = HostCall(*_starts(attention, hidden.shape[1], kwargs), hidden.dtype)
    if "position_embeddings" in kwargs:
        cos, sin = kwargs["position_embeddings"]
        if attention.core.own_positions:
            cos, sin = torch.ones_like(cos), torch.zeros_like(sin)
        kwargs["position_embeddings"] = (cos.to(dtype), sin.to(dtype))
    return args, kwargs


def _starts(attention: nn.Module, queries: int, kwargs: dict[str, Any]) -> tuple[int, int]:
    """Positions of the first query and of the first key, counted in tokens seen by the cache."""
    cache = kwargs.get("past_key_values")
    if cache is None:
        cache = kwargs.get("layer_past")  # GPT-NeoX
    if cache is None:
        return 0, 0
    _, first_key = cache.get_mask_sizes(queries, attention.layer_idx)
    return int(cache.get_seq_length(attention.layer_idx)), int(first_key)


def _restore_dtype(attention: nn.Module, args: tuple, kwargs: dict[str, Any], output: tuple) -> tuple:
    """Hand the output back in the dtype that came in, where only this layer is kept in fp32 for training."""
    return (output[0].to(kwargs["host_call"].dtype), *output[1:])


def _attend(
    attention: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    host_call: HostCall,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function: transformers' arguments in, (batch, queries, heads, head width) out."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    mask = _boolean(attention_mask, key.shape[2])
    output = attention.core(query, key, value, mask, scaling, host_call.query_start, host_call.key_start)
    return output.transpose(1, 2).contiguous(), None


def _boolean(mask: Tensor | None, keys: int) -> Tensor | None:
    """A 4-D mask as boolean, True where a query may look; None stays None (causal)."""
    if mask is None:
        return None
    if mask.dim() != 4:
        raise ValueError(f"an attention mask must be (batch, 1, queries, keys) here, not {tuple(mask.shape)}")
    if mask.dtype != torch.bool:
        if not mask.is_floating_point():
            raise ValueError(f"an attention mask must be boolean, or additive and floating, not {mask.dtype}")
        mask = mask > -1000  # an additive mask: 0, or a number so low (-1e4, -inf) that nothing is left of the weight
    return mask[..., :keys]
