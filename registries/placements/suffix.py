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
    hits = {text: [each for each in candidates if f".{each.module}".endswith(f".{text}")] for text in suffixes}
    known = list(dict.fromkeys(each.module.rpartition(".")[2] for each in candidates))
    errors = []
    for text, some in hits.items():
        roles = list(dict.fromkeys(each.role for each in some))
        if not some:
            errors.append(
                f"placement.suffixes: {text!r} ends no linear layer of this model{nearest(text, known)} Allowed: "
                f"{', '.join(known)}"
            )
        elif len(roles) > 1 and not allow_ambiguous:
            errors.append(
                f"placement.suffixes: {text!r} names several roles ({', '.join(roles)}): write more of the name "
                f"({', '.join(dict.fromkeys('.'.join(each.module.split('.')[-2:]) for each in some))}), or set "
                "placement.allow_ambiguous=true"
            )
    if errors:
        raise UserError(errors)
    chosen = {each.module for some in hits.values() for each in some}
    some = [each for each in candidates if each.module in chosen]
    return ranked(some, rank, resolve_budget(model, budget, variant), variant)
