"""Refuses texts that are longer than a model reads as it reads all others."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from registries.architectures import ARCHITECTURES
from registries.model_shape import LengthLimit, shape_of
from registries.registry import UserError


def length_limit(model: nn.Module) -> LengthLimit | None:
    """The limit of a model's family; None where there is none, or where the family is not known."""
    family = model.config.get_text_config().model_type
    has_positions = family in ARCHITECTURES and ARCHITECTURES.get(family).attention is not None
    return shape_of(model.config).limit if has_positions else None


def guard_length(model: nn.Module) -> nn.Module:
    """Let a causal LM raise UserError where a text goes beyond its limit: it would fail, or compute something else."""
    limit = length_limit(model)
    if limit is not None:
        model.base_model.register_forward_pre_hook(partial(_require, limit), with_kwargs=True)
    return model


def _require(limit: LengthLimit, body: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    positions, cache = kwargs.get("position_ids"), kwargs.get("past_key_values")
    if positions is not None:
        length = int(positions.max()) + 1
    else:
        inputs = [*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds")]
        tokens = next(tensor for tensor in inputs if tensor is not None)
        length = tokens.shape[1] + (0 if cache is None else int(cache.get_seq_length()))
    if length > limit.tokens:
        raise UserError(f"a text of {length} tokens is longer than {limit.words}: give shorter blocks or prompts")
