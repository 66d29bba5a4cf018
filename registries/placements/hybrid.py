"""Different roles and ranks in different layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

from annotated_types import Ge, MinLen

from registries import PLACEMENTS
from registries.layers import LayerSpec
from registries.placements.placement import Budget, Linear, Row, Variant, linears
from registries.placements.ranks import ranked, resolve_budget
from registries.registry import UserError, signature_errors


@dataclass(frozen=True)
class PlacementPart:
    """One of `placement.parts`: a rank for some roles in some layers."""

    roles: Annotated[list[str], MinLen(1)]
    layers: LayerSpec
    rank: Annotated[int, Ge(1)]


def _check(parts: list[dict[str, Any]]) -> list[str]:
    return [
        message
        for index, keys in enumerate(parts)
        for message in signature_errors(PlacementPart, dict(keys), f"placement.parts[{index}]")
    ]


@PLACEMENTS.register("hybrid", check=_check)
def hybrid(
    model: Any,
    parts: Annotated[list[dict[str, Any]], MinLen(1)],
    budget: Budget | None = None,
    variant: Variant = "lora",
) -> list[Row]:
    """Roles and ranks by range of layers.

    Args:
        model: the model, or another object with its `config`.
        parts: each with `roles`, `layers` (a layer spec) and `rank`; a later part overrides an earlier one.
        budget: trainable parameters, or a share (`50%`) of those of all linear layers at rank 16; the ranks of all
            parts are scaled by one factor to meet it.
        variant: the variant of LoRA whose parameters are counted.
    """
    errors = _check(parts)
    if errors:
        raise UserError(errors)
    candidates: dict[str, Linear] = {}
    for index, part in enumerate(PlacementPart(**keys) for keys in parts):
        key = f"placement.parts[{index}]"
        layers = linears(model, part.roles, part.layers, key)
        ranked(layers, part.rank, None, variant, key)  # raises for a rank that is too high
        candidates |= {linear.module: replace(linear, weight=float(part.rank)) for linear in layers}
    in_order = sorted(candidates.values(), key=lambda linear: linear.layer)
    return ranked(in_order, 1, resolve_budget(model, budget, variant), variant)
