"""Placement where a score measured on the data says that it pays most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge

from registries import PLACEMENTS
from registries.placements import LayerSpec, Row, Variant, linears, ranked
from registries.registry import UserError

Score = Literal["gradient", "fisher", "feature_norm"]


@PLACEMENTS.register("importance")
def importance(
    model: Any,
    scores: Mapping[str, float],
    budget: Annotated[int, Ge(1)],
    score: Score = "gradient",
    batches: Annotated[int, Ge(1)] = 8,
    roles: list[str] | None = None,
    layers: LayerSpec = "all",
    rank: Annotated[int, Ge(1)] = 16,
    variant: Variant = "lora",
) -> list[Row]:
    """The linear layers with the highest scores, as many as the budget allows.

    Args:
        model: whatever has the model's `config`.
        scores: module -> what an addition of rank 1 there is worth; measured by `lightning_modules.importance`.
        budget: trainable parameters.
        score: what is measured; see there.
        batches: of the training data that it is measured on.
        roles: to choose from, as roles or prefixes; None: all.
        layers: to choose from, a layer spec.
        rank: of every addition.
        variant: whose parameters are counted.

    Raises:
        UserError: the budget is below the smallest addition, or above that of all.
    """
    candidates = linears(model, roles or ["attention", "mlp"], layers)
    rows = {row.module: row for row in ranked(candidates, rank, None, variant)}
    smallest, total = min(row.parameters for row in rows.values()), sum(row.parameters for row in rows.values())
    if not smallest <= budget <= total:
        raise UserError(
            f"placement.budget={budget:,} cannot be met at placement.rank={rank}: the smallest layer takes "
            f"{smallest:,} parameters, all together {total:,}. The nearest is "
            f"placement.budget={smallest if budget < smallest else total}; a lower rank takes less, a higher one more"
        )
    best = sorted(rows.values(), key=lambda row: scores[row.module] * row.rank / row.parameters, reverse=True)
    chosen, left = set(), budget
    for row in best:
        if row.parameters <= left:
            chosen.add(row.module)
            left -= row.parameters
    return [row for module, row in rows.items() if module in chosen]
