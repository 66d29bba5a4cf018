"""Placement by raw module name suffixes, as PEFT takes them; to reproduce what others did."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, MinLen

from registries import PLACEMENTS
from registries.layers import LayerSpec
from registries.placements.placement import Budget, Row, Variant, every_linear
from registries.placements.ranks import ranked, resolve_budget
from registries.registry import UserError, nearest


@PLACEMENTS.register("suffix")
def suffix(
    model: Any,
    suffixes: Annotated[list[str], MinLen(1)],
    allow_ambiguous: bool = False,
    layers: LayerSpec = "all",
    rank: Annotated[int, Ge(1)] = 16,
    budget: Budget | None = None,
    variant: Variant = "lora",
) -> list[Row]:
    """The linear layers whose names end with one of these suffixes.

    Args:
        model: the model, or another object with its `config`.
        suffixes: last parts of module names: `c_attn`, or `attn.c_proj`.
        allow_ambiguous: take a suffix that names several roles; GPT-2's `c_proj` is in the attention and in the MLP.
        layers: layer spec.
        rank: rank of every addition.
        budget: trainable parameters, or a share (`50%`) of those of all linear layers at rank 16; replaces `rank`.
        variant: the variant of LoRA whose parameters are counted.

    Raises:
        UserError: a suffix that names nothing, or several roles without `allow_ambiguous`.
    """
    candidates = every_linear(model, layers)
    endings = list(dict.fromkeys(linear.module.rpartition(".")[2] for linear in candidates))
    errors, chosen = [], set()
    for ending in dict.fromkeys(suffixes):
        matching = [linear for linear in candidates if f".{linear.module}".endswith(f".{ending}")]
        chosen.update(linear.module for linear in matching)
        roles = list(dict.fromkeys(linear.role for linear in matching))
        if not matching:
            errors.append(
                f"placement.suffixes: {ending!r} ends no linear layer of this model{nearest(ending, endings)} Allowed: "
                f"{', '.join(endings)}"
            )
        elif len(roles) > 1 and not allow_ambiguous:
            longer = dict.fromkeys(".".join(linear.module.split(".")[-2:]) for linear in matching)
            errors.append(
                f"placement.suffixes: {ending!r} names several roles ({', '.join(roles)}): write more of the name "
                f"({', '.join(longer)}), or set placement.allow_ambiguous=true"
            )
    if errors:
        raise UserError(errors)
    placed = [linear for linear in candidates if linear.module in chosen]
    return ranked(placed, rank, resolve_budget(model, budget, variant), variant)
