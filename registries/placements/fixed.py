"""Placements on fixed roles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from annotated_types import Ge, MinLen

from registries import PLACEMENTS
from registries.layers import LayerSpec
from registries.model_shape import linear_sizes, shape_of
from registries.placements.placement import Budget, Placement, Row, Variant, linears
from registries.placements.ranks import ranked, resolve_budget
from registries.registry import UserError


def on_roles(own: Callable[[Sequence[str]], Sequence[str]], summary: str) -> Placement:
    """The placement on the roles that `own` chooses of those that a family has."""

    def place(
        model: Any,
        roles: Annotated[list[str], MinLen(1)] | None = None,
        layers: LayerSpec = "all",
        rank: Annotated[int, Ge(1)] = 16,
        budget: Budget | None = None,
        variant: Variant = "lora",
    ) -> list[Row]:
        candidates = linears(model, own(list(linear_sizes(shape_of(model.config)))), layers)
        if roles is not None:
            chosen = {linear.role for linear in linears(model, roles, layers)}
            allowed = list(dict.fromkeys(linear.role for linear in candidates))
            strange = sorted(chosen.difference(allowed))
            if strange:
                raise UserError(
                    f"placement.roles={list(roles)}: {strange[0]} is none of this placement's roles. Allowed: "
                    f"{', '.join(allowed)}; all_linear has every role"
                )
            candidates = [linear for linear in candidates if linear.role in chosen]
        return ranked(candidates, rank, resolve_budget(model, budget, variant), variant)

    place.__doc__ = f"""{summary}

    Args:
        model: whatever has the model's `config`.
        roles: only these, as roles or prefixes of them; None: all of the placement's.
        layers: layer spec.
        rank: of every addition.
        budget: trainable parameters, or a share (`50%`) of those of all linear layers at rank 16; they decide
            the rank in its place.
        variant: whose parameters are counted.
    """
    return place


PLACEMENTS.register("all_linear")(on_roles(lambda roles: roles, "Every linear layer of the blocks."))
PLACEMENTS.register("attention")(on_roles(lambda roles: ["attention"], "The projections of attention, and no others."))
PLACEMENTS.register("feed_forward")(on_roles(lambda roles: ["mlp"], "The linear layers of the MLPs, and no others."))
PLACEMENTS.register("attention_output")(
    on_roles(lambda roles: ["attention.output"], "The output projections of attention.")
)
PLACEMENTS.register("query_value")(
    on_roles(
        lambda roles: ["attention.qkv"] if "attention.qkv" in roles else ["attention.query", "attention.value"],
        "Queries and values, as in the first paper on LoRA; the projection that has both where they are fused.",
    )
)
