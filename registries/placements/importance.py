"""Placement where a score measured on the data says that it pays most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, MinLen

from registries import PLACEMENTS
from registries.layers import LayerSpec
from registries.placements.placement import Budget, Linear, Row, Variant, linears
from registries.placements.ranks import ranked, resolve_budget
from registries.registry import UserError

Score = Literal["gradient", "fisher", "feature_norm"]


@PLACEMENTS.register("importance")
def importance(
    model: Any,
    scores: Mapping[str, float],
    budget: Budget,
    score: Score = "gradient",
    batches: Annotated[int, Ge(1)] = 8,
    roles: Annotated[list[str], MinLen(1)] | None = None,
    layers: LayerSpec = "all",
    rank: Annotated[int, Ge(1)] | None = None,
    sharpness: Annotated[float, Gt(0)] = 0.25,
    variant: Variant = "lora",
) -> list[Row]:
    """Ranks by the score of each linear layer, as high as the budget allows; or one rank where the scores are highest.

    Args:
        model: whatever has the model's `config`.
        scores: module -> what a trainable parameter there is worth, see `lightning_modules.surgery.layer_scores`.
        budget: trainable parameters, or a share (`50%`) of those of all linear layers at rank 16.
        score: what is measured; see there.
        batches: of the training data that it is measured on.
        roles: to choose from, as roles or prefixes; None: all.
        layers: to choose from, a layer spec.
        rank: of every addition, in the layers with the highest scores; None: in proportion to score ** sharpness, where
            that is at least 1.
        sharpness: how much of the scores' differences the ranks follow; near 0 all layers get the same.
        variant: whose parameters are counted.

    Raises:
        UserError: the budget is below the smallest addition, or above that of all.
    """
    budget = resolve_budget(model, budget, variant)
    candidates = linears(model, roles or ["attention", "mlp"], layers)
    if rank is not None:
        return _highest(candidates, scores, budget, rank, variant)
    best = max(scores[linear.module] for linear in candidates)
    weighted = [replace(each, weight=max(1e-9, scores[each.module] / best) ** sharpness) for each in candidates]
    return ranked(weighted, 1, budget, variant, least=0)


def _highest(
    candidates: Sequence[Linear], scores: Mapping[str, float], budget: int, rank: int, variant: Variant
) -> list[Row]:
    """Additions of one rank where the scores are highest, as many as the budget allows."""
    rows = {row.module: row for row in ranked(candidates, rank, None, variant)}
    smallest, total = min(row.parameters for row in rows.values()), sum(row.parameters for row in rows.values())
    if not smallest <= budget <= total:
        raise UserError(
            f"placement.budget={budget:,} cannot be met at placement.rank={rank}: the smallest layer takes "
            f"{smallest:,} parameters, all together {total:,}. The nearest is "
            f"placement.budget={smallest if budget < smallest else total}; a lower rank takes less, a higher one more, "
            "and placement.rank=null decides it"
        )
    chosen, left = set(), budget
    for row in sorted(rows.values(), key=lambda row: scores[row.module], reverse=True):
        if row.parameters <= left:
            chosen.add(row.module)
            left -= row.parameters
    return [row for module, row in rows.items() if module in chosen]
