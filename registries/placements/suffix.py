"""Placement by raw module name suffixes, as PEFT takes them; to reproduce what others did."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, MinLen

from registries import PLACEMENTS
from registries.layers import LayerSpec
from registries.placements.placement import Budget, Row, Variant, linears
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
        model: whatever has the model's `config`.
        suffixes: last parts of module names: `c_attn`, or `attn.c_proj`.
        allow_ambiguous: take a suffix that names several roles; GPT-2's `c_proj` is in the attention and in the MLP.
        layers: layer spec.
        rank: of every addition.
        budget: trainable parameters, or a share (`50%`) of those of all linear layers at rank 16; they decide
            the rank in its place.
        variant: whose parameters are counted.

    Raises:
        UserError: a suffix that names nothing, or several roles without `allow_ambiguous`.
    """
    candidates = linears(model, ["attention", "mlp"], layers)
    hits = {text: [linear for linear in candidates if f".{linear.module}".endswith(f".{text}")] for text in suffixes}
    names = list(dict.fromkeys(linear.module.rpartition(".")[2] for linear in candidates))
    errors = []
    for text, matches in hits.items():
        roles = list(dict.fromkeys(linear.role for linear in matches))
        if not matches:
            errors.append(
                f"placement.suffixes: {text!r} ends no linear layer of this model{nearest(text, names)} Allowed: "
                f"{', '.join(names)}"
            )
        elif len(roles) > 1 and not allow_ambiguous:
            errors.append(
                f"placement.suffixes: {text!r} names several roles ({', '.join(roles)}): write more of the name "
                f"({', '.join(dict.fromkeys('.'.join(linear.module.split('.')[-2:]) for linear in matches))}), or set "
                "placement.allow_ambiguous=true"
            )
    if errors:
        raise UserError(errors)
    chosen = {linear.module for matches in hits.values() for linear in matches}
    placed = [linear for linear in candidates if linear.module in chosen]
    return ranked(placed, rank, resolve_budget(model, budget, variant), variant)
