"""What a LoRA placement is: a table of linear layers with the ranks of their additions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Protocol

from annotated_types import Ge, Predicate

from registries.architectures import architecture_of, resolve_roles
from registries.layers import LayerSpec, resolve_layers
from registries.model_shape import linear_sizes, shape_of
from registries.registry import UserError


def is_share(text: str) -> bool:
    """Whether a text is a share such as `50%`."""
    return re.fullmatch(r"\d{1,9}\.?\d{0,9}%", text) is not None


Budget = Annotated[int, Ge(1)] | Annotated[str, Predicate(is_share)]
Variant = Literal["lora", "rslora", "dora"]
Init = Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora", "eva", "lora_ga"]
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
