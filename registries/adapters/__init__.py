"""Cross-model adapters: what a component is, and the map that the closed forms among them find.

An adapter turns hidden states of one model, the source, into those of another, the target. What it takes from the data
before any training is its `fit`; what is left to be trained are its parameters, if it has any.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, Protocol, Union

import torch
from torch import Tensor, nn

from registries import ADAPTERS
from registries.registry import UserError

if TYPE_CHECKING:
    from registries.adapters.moments import Statistics

Pairs = Union[Iterable[tuple[Tensor, Tensor]], "Statistics"]  # batches of rows, or what was gathered of them
Start = Literal["identity", "procrustes", "ridge"]


class Adapter(Protocol):
    """What an adapter is: a torch module, built with `source_width`, `target_width` and its keys of the config.

    One that has no parameters says so by `trained = False`; it gets no keys for training.
    """

    def __call__(self, states: Tensor) -> Tensor:
        """(..., source width) -> (..., target width)."""
        ...

    def fit(self, pairs: Pairs) -> None:
        """Take scales, means, a start or the whole solution from (rows, source width), (rows, target width) batches."""
        ...


class AffineMap(nn.Module):
    """(states - source mean) @ weight + target mean; not trained."""

    def __init__(self, source_width: int, target_width: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(source_width, target_width))
        self.register_buffer("source_mean", torch.zeros(source_width))
        self.register_buffer("target_mean", torch.zeros(target_width))

    def forward(self, states: Tensor) -> Tensor:
        return ((states.to(self.weight.dtype) - self.source_mean) @ self.weight + self.target_mean).to(states.dtype)

    def set(self, weight: Tensor, source_mean: Tensor, target_mean: Tensor) -> None:
        """Take what was found in double precision."""
        for name, value in (("weight", weight), ("source_mean", source_mean), ("target_mean", target_mean)):
            setattr(self, name, value.to(getattr(self, name)))


def is_trained(name: str) -> bool:
    """Whether an adapter of this name may have something to train; the others are done when they are fitted."""
    return getattr(ADAPTERS.get(name), "trained", True)


def equal_widths(source_width: int, target_width: int) -> list[str]:
    """What is wrong with the identity between these widths."""
    if source_width == target_width:
        return []
    return [f"the identity needs models of one width; the source's is {source_width}, the target's {target_width}"]


def start_errors(start: Start | None, source_width: int, target_width: int) -> list[str]:
    """What is wrong with the key `start` between these widths."""
    return equal_widths(source_width, target_width) if start == "identity" else []


def fitted_start(start: Start, source_width: int, target_width: int, pairs: Pairs, centre: bool = True) -> AffineMap:
    """The map of a closed form, to start from, in double precision.

    Raises:
        UserError: the identity between different widths.
    """
    if start == "identity":
        if wrong := equal_widths(source_width, target_width):
            raise UserError(wrong)
        found = AffineMap(source_width, target_width).double()
        nn.init.eye_(found.weight)
        return found
    adapter = ADAPTERS.build(start, source_width=source_width, target_width=target_width, centre=centre).double()
    adapter.fit(pairs)
    return adapter.map
