"""The interface of LoRA placements: a table of linear layers with the ranks of their additions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Protocol

from annotated_types import Ge, Predicate

from registries.architectures import architecture_of, resolve_roles
from registries.layers import LayerSpec, resolve_layers
from registries.model_shape import linear_sizes, raw_config, shape_of
from registries.registry import UserError


def is_share(text: str) -> bool:
    """Whether a text is a share such as `50%`."""
    return re.fullmatch(r"[0-9]{1,9}\.?[0-9]{0,9}%", text) is not None


Budget = Annotated[int, Ge(1)] | Annotated[str, Predicate(is_share)]
Variant = Literal["lora", "rslora", "dora"]
Init = Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora", "eva", "lora_ga"]
# These move a part of the frozen weights into the additions, so the frozen weights change, in their own dtype.
CHANGES_WEIGHTS = ("pissa", "olora", "lora_ga")
NEEDS_DATA = ("eva", "lora_ga")


class Row(NamedTuple):
    """One line of a placement's table.

    Attributes:
        module: full name of a linear layer.
        role: role of the linear layer, such as `attention.query`.
        layer: index of its block.
        rank: rank of its addition.
        parameters: number of trainable parameters in the addition.
    """

    module: str
    role: str
    layer: int
    rank: int
    parameters: int


@dataclass(frozen=True)
class Linear:
    """A linear layer that can get an addition. Its rank is a common rank times `weight`."""

    module: str
    role: str
    layer: int
    inputs: int
    outputs: int
    weight: float = 1.0

    @property
    def max_rank(self) -> int:
        """The highest useful rank of an addition."""
        return min(self.inputs, self.outputs)

    def row(self, rank: int, variant: Variant) -> Row:
        """The line in the table: inputs + outputs parameters per rank, and DoRA's magnitude of every output."""
        parameters = rank * (self.inputs + self.outputs) + (self.outputs if variant == "dora" else 0)
        return Row(self.module, self.role, self.layer, rank, parameters)


class Placement(Protocol):
    """A placement. A parameter `scores` asks for a score of every linear layer, measured on the data."""

    def __call__(self, model: Any, **options: Any) -> list[Row]:
        """The table for a model, or for another object with the model's `config`.

        Raises:
            UserError: an option that this model does not allow.
        """
        ...


def linears(model: Any, roles: Sequence[str], layers: LayerSpec = "all", key: str = "placement") -> list[Linear]:
    """The linear layers of a model that play these roles in these layers, block by block.

    Args:
        model: an object with a `config` of a known family.
        roles: roles or prefixes of them.
        key: the config key that messages name.

    Raises:
        UserError: a role that the family does not have, or a layer that the model does not have.
    """
    shape = shape_of(model.config)
    architecture, sizes = architecture_of(shape.family), linear_sizes(shape)
    try:
        resolved = resolve_roles(architecture, roles)
    except UserError as error:
        raise UserError(f"{key}.roles: {message}" for message in error.messages) from error
    try:
        indices = resolve_layers(layers, shape.num_layers)
    except UserError as error:
        raise UserError(f"{key}.{message}" for message in error.messages) from error
    return [
        Linear(f"{architecture.blocks}.{layer}.{architecture.roles[role]}", role, layer, *sizes[role])
        for layer in indices
        for role in resolved
    ]


def every_linear(model: Any, layers: LayerSpec = "all") -> list[Linear]:
    """The linear layers of a model that can get an addition; of a family without roles, all that it tells.

    Raises:
        UserError: a layer that the model does not have.
    """
    config = raw_config(model.config)
    tell = architecture_of(config.get("model_type", "(none)")).linears
    if tell is None:
        return linears(model, ["attention", "mlp"], layers)
    if layers != "all":
        raise UserError(f"placement.layers={layers!r}: this model has no blocks to choose from; leave it at all")
    return [Linear(name, "linear", 0, *sizes) for name, sizes in tell(config).items()]


def init_errors(model: Any, rows: Sequence[Row], init: Init) -> list[str]:
    """A message about the first row of a table that an init does not work for."""
    family = raw_config(model.config)["model_type"]
    max_ranks = {linear.module: linear.max_rank for linear in every_linear(model)}
    if init == "olora" and architecture_of(family).transposed:
        return [f"placement.init=olora does not work for {family}, whose weights are transposed: choose pissa"]
    for row in rows:
        if init == "orthogonal" and row.rank % 2:
            return [f"placement.init=orthogonal needs even ranks, and {row.module} has {row.rank}: choose another one"]
        if init == "lora_ga" and 2 * row.rank > (max_rank := max_ranks[row.module]):
            return [
                f"placement.init=lora_ga needs twice the rank in directions of the gradient, and {row.module} has rank "
                f"{row.rank} and {max_rank}: choose a rank of at most {max_rank // 2}"
            ]
    return []
