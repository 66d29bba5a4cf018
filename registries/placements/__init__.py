"""LoRA placements: which linear layers get low-rank additions, and of what rank. One file per component.

A placement is a callable from a model and its own options to a table of `Row`s. It reads the model's config alone, so
that a placement is known, and checked, before any weights are.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Protocol

from annotated_types import Ge, Predicate

from registries.architectures import architecture_of, linear_sizes, resolve_roles, shape_of
from registries.layers import resolve_layers
from registries.registry import UserError


def is_share(text: str) -> bool:
    """Whether a text is a share such as `50%`."""
    return re.fullmatch(r"\d{1,9}\.?\d{0,9}%", text) is not None


LayerSpec = str | int | list[int]
Budget = Annotated[int, Ge(1)] | Annotated[str, Predicate(is_share)]
Variant = Literal["lora", "rslora", "dora"]
Init = Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora", "eva", "lora_ga"]

SHARE_RANK = 16  # a budget of 50% is half of what all linear layers take at this rank

# These take what the additions start with out of the frozen weights; so frozen weights change, in their own dtype.
CHANGES_WEIGHTS = ("pissa", "olora", "lora_ga")
NEEDS_DATA = ("eva", "lora_ga")


class Row(NamedTuple):
    """One line of a placement's table.

    Attributes:
        module: full name of a linear layer.
        role: what it does, `attention.query` for example.
        layer: index of the block that it is in.
        rank: of its addition.
        parameters: that this makes trainable.
    """

    module: str
    role: str
    layer: int
    rank: int
    parameters: int


@dataclass(frozen=True)
class Linear:
    """A linear layer that can get an addition. `weight` is its share of a rank that a budget decides."""

    module: str
    role: str
    layer: int
    inputs: int
    outputs: int
    weight: float = 1.0

    @property
    def max_rank(self) -> int:
        """The rank above which an addition can express no more."""
        return min(self.inputs, self.outputs)

    def row(self, rank: int, variant: Variant) -> Row:
        """Its line in the table: (inputs + outputs) parameters per rank, and DoRA's magnitude of every output."""
        parameters = rank * (self.inputs + self.outputs) + (self.outputs if variant == "dora" else 0)
        return Row(self.module, self.role, self.layer, rank, parameters)


class Placement(Protocol):
    """What a placement is. A parameter `scores` asks for a score of every linear layer, measured on the data."""

    def __call__(self, model: Any, **options: Any) -> list[Row]:
        """The table for a model (or whatever has its `config`).

        Raises:
            UserError: an option that this model does not allow.
        """
        ...


def linears(model: Any, roles: Sequence[str], layers: LayerSpec = "all", where: str = "placement") -> list[Linear]:
    """The linear layers of a model that play these roles in these layers, block by block.

    Args:
        model: whatever has a `config` of a known family.
        roles: roles or prefixes of them.
        where: the place in the config, for messages.

    Raises:
        UserError: a role that the family does not have, or a layer that the model does not have.
    """
    shape = shape_of(model.config)
    architecture, sizes = architecture_of(shape.family), linear_sizes(shape)
    try:
        named = resolve_roles(architecture, roles)
    except UserError as error:
        raise UserError(f"{where}.roles: {message}" for message in error.messages) from error
    try:
        indices = resolve_layers(layers, shape.num_layers)
    except UserError as error:
        raise UserError(f"{where}.{message}" for message in error.messages) from error
    return [
        Linear(f"{architecture.blocks}.{layer}.{architecture.roles[role]}", role, layer, *sizes[role])
        for layer in indices
        for role in named
    ]


def resolve_budget(model: Any, budget: Budget | None, variant: Variant) -> int | None:
    """Trainable parameters of a budget; `50%` is that share of what all linear layers take at rank 16."""
    if not isinstance(budget, str):
        return budget
    return int(
        float(budget.rstrip("%"))
        / 100
        * _total([linear.row(SHARE_RANK, variant) for linear in linears(model, ["attention", "mlp"])])
    )


def ranked(
    candidates: Sequence[Linear],
    rank: int,
    budget: int | None,
    variant: Variant,
    where: str = "placement",
    least: int = 1,
) -> list[Row]:
    """The table of these linear layers.

    Args:
        rank: of every addition, times the layer's weight.
        budget: trainable parameters; they decide the rank in its place: the largest that does not exceed them.

        where: the place in the config, for messages.
        least: lowest rank under a budget; 0 leaves layers out whose weight is too low for rank 1.

    Raises:
        UserError: a rank above a layer's width; a budget below that of rank 1 or above that of full rank.
    """
    if budget is None:
        for linear in candidates:
            wanted = int(rank * linear.weight)
            if wanted > linear.max_rank:
                raise UserError(
                    f"{where}.rank={wanted} is above the width of {linear.module} ({linear.inputs} to "
                    f"{linear.outputs}): allowed are 1 to {linear.max_rank}"
                )
        return _rows(candidates, rank, variant)
    # Ranks grow where one of them passes a whole number.
    steps = sorted({step / linear.weight for linear in candidates for step in range(1, linear.max_rank + 1)})
    smallest, largest = (_total(_rows(candidates, step, variant, least)) for step in (steps[0], steps[-1]))
    if not smallest <= budget <= largest:
        nearest, other = (smallest, "fewer") if budget < smallest else (largest, "more")
        raise UserError(
            f"{where}.budget={budget:,} cannot be met: the lowest ranks take {smallest:,} parameters, the full ranks "
            f"{largest:,}. The nearest is {where}.budget={nearest}; or choose {other} roles or layers"
        )
    fitting = bisect_right(steps, budget, key=lambda step: _total(_rows(candidates, step, variant, least)))
    return _rows(candidates, steps[fitting - 1], variant, least)


def init_errors(model: Any, rows: Sequence[Row], init: Init) -> list[str]:
    """What is wrong with a table for an init: each line names the first layer that it does not work for."""
    shape = shape_of(model.config)
    widths = {linear.module: linear.max_rank for linear in linears(model, ["attention", "mlp"])}
    if init == "olora" and architecture_of(shape.family).transposed:
        return [f"placement.init=olora does not work for {shape.family}, whose weights are transposed: choose pissa"]
    for row in rows:
        if init == "orthogonal" and row.rank % 2:
            return [f"placement.init=orthogonal needs even ranks, and {row.module} has {row.rank}: choose another one"]
        if init == "lora_ga" and 2 * row.rank > widths[row.module]:
            return [
                f"placement.init=lora_ga needs twice the rank in directions of the gradient, and {row.module} has rank "
                f"{row.rank} and {widths[row.module]}: choose a rank of at most {widths[row.module] // 2}"
            ]
    return []


def _rows(candidates: Sequence[Linear], rank: float, variant: Variant, least: int = 1) -> list[Row]:
    """The table at a common rank, times the weights, between `least` and the widths."""
    tiny = 1e-9  # a step divided and multiplied by a weight again must not fall below the whole number it was
    ranks = [min(linear.max_rank, max(least, int(rank * linear.weight + tiny))) for linear in candidates]
    return [linear.row(rank, variant) for linear, rank in zip(candidates, ranks, strict=True) if rank]


def _total(rows: Sequence[Row]) -> int:
    return sum(row.parameters for row in rows)
