"""Different roles and ranks in different layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from annotated_types import Ge, MinLen

from registries import PLACEMENTS
from registries.layers import LayerSpec
from registries.placements.placement import Budget, Linear, Row, Variant, linears
from registries.placements.ranks import ranked, resolve_budget
from registries.registry import UserError, signature_errors


def part(
    roles: Annotated[list[str], MinLen(1)],
    layers: LayerSpec,
    rank: Annotated[int, Ge(1)],
) -> None:
    """The keys of one of `placement.parts`."""


def _check(parts: list[dict[str, Any]]) -> list[str]:
    return [
        message
        for index, keys in enumerate(parts)
        for message in signature_errors(part, dict(keys), f"placement.parts[{index}]")
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
        model: whatever has the model's `config`.
        parts: each with `roles`, `layers` (a layer spec) and `rank`; a later one overrides an earlier one.
        budget: trainable parameters, or a share (`50%`) of those of all linear layers at rank 16; the ranks of all
            parts are scaled by one factor to meet them.
        variant: whose parameters are counted.
    """
    errors = _check(parts)
    if errors:
        raise UserError(errors)
    found: dict[str, Linear] = {}
    for index, keys in enumerate(parts):
        some = linears(model, keys["roles"], keys["layers"], f"placement.parts[{index}]")
        ranked(some, keys["rank"], None, variant, f"placement.parts[{index}]")  # or it names a rank that is too high
        found |= {linear.module: replace(linear, weight=float(keys["rank"])) for linear in some}
    in_order = sorted(found.values(), key=lambda linear: linear.layer)
    return ranked(in_order, 1, resolve_budget(model, budget, variant), variant)
