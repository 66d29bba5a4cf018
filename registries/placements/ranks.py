"""The ranks of a table: given, or as high as a budget of trainable parameters allows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from registries.placements.placement import Budget, Linear, Row, Variant, every_linear
from registries.registry import UserError

SHARE_RANK = 16  # a budget of 50% is half of what all linear layers take at this rank


def resolve_budget(model: Any, budget: Budget | None, variant: Variant) -> int | None:
    """Trainable parameters of a budget; `50%` is this share of the parameters of all linear layers at rank 16."""
    if not isinstance(budget, str):
        return budget
    total = _total([linear.row(SHARE_RANK, variant) for linear in every_linear(model)])
    return int(float(budget.rstrip("%")) / 100 * total)


def ranked(
    candidates: Sequence[Linear],
    rank: int,
    budget: int | None,
    variant: Variant,
    key: str = "placement",
    least: int = 1,
) -> list[Row]:
    """The table of these linear layers.

    Args:
        rank: rank of every addition, times the layer's weight.
        budget: trainable parameters; the highest ranks that do not exceed them replace `rank`.
        key: the config key that messages name.
        least: lowest rank under a budget; 0 leaves out layers whose weight is too low for rank 1.

    Raises:
        UserError: a rank above a layer's width; a budget below that of rank 1 or above that of full rank.
    """
    if budget is None:
        for linear in candidates:
            layer_rank = int(rank * linear.weight)
            if layer_rank > linear.max_rank:
                raise UserError(
                    f"{key}.rank={layer_rank} is above the width of {linear.module} ({linear.inputs} to "
                    f"{linear.outputs}): allowed are 1 to {linear.max_rank}"
                )
        return _rows(candidates, rank, variant)
    # The common ranks at which the rank of some layer reaches the next whole number.
    steps = sorted({step / linear.weight for linear in candidates for step in range(1, linear.max_rank + 1)})
    smallest, largest = (_total(_rows(candidates, step, variant, least)) for step in (steps[0], steps[-1]))
    if not smallest <= budget <= largest:
        nearest, direction = (smallest, "fewer") if budget < smallest else (largest, "more")
        raise UserError(
            f"{key}.budget={budget:,} cannot be met: the lowest ranks take {smallest:,} parameters, the full ranks "
            f"{largest:,}. The nearest is {key}.budget={nearest}; or choose {direction} roles or layers"
        )
    fitting = bisect_right(steps, budget, key=lambda step: _total(_rows(candidates, step, variant, least)))
    return _rows(candidates, steps[fitting - 1], variant, least)


def _rows(candidates: Sequence[Linear], rank: float, variant: Variant, least: int = 1) -> list[Row]:
    """The table at a common rank, times the weights, between `least` and the widths."""
    margin = 1e-9  # a whole number that was divided and multiplied by a weight must not fall below itself
    ranks = [min(linear.max_rank, max(least, int(rank * linear.weight + margin))) for linear in candidates]
    return [linear.row(rank, variant) for linear, rank in zip(candidates, ranks, strict=True) if rank]


def _total(rows: Sequence[Row]) -> int:
    return sum(row.parameters for row in rows)
