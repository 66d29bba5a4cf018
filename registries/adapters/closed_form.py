"""The affine map of the closed forms, from which trained adapters may start."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from registries import ADAPTERS
from registries.adapters.moments import Pairs
from registries.registry import UserError

Start = Literal["identity", "procrustes", "ridge"]


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
        """Set the map, in its own dtype and on its own device, from values in double precision."""
        for name, value in (("weight", weight), ("source_mean", source_mean), ("target_mean", target_mean)):
            setattr(self, name, value.to(getattr(self, name)))


def equal_widths(source_width: int, target_width: int) -> list[str]:
    """What is wrong with the identity between these widths."""
    if source_width == target_width:
        return []
    return [f"the identity needs models of one width; the source's is {source_width}, the target's {target_width}"]


def start_errors(start: Start | None, source_width: int, target_width: int) -> list[str]:
    """What is wrong with the key `start` between these widths."""
    return equal_widths(source_width, target_width) if start == "identity" else []


def fitted_start(start: Start, source_width: int, target_width: int, pairs: Pairs, centre: bool = True) -> AffineMap:
    """The fitted map of a closed form, in double precision, as the start of a trained adapter.

    Raises:
        UserError: the identity between different widths.
    """
    if start == "identity":
        if wrong := equal_widths(source_width, target_width):
            raise UserError(wrong)
        identity = AffineMap(source_width, target_width).double()
        nn.init.eye_(identity.weight)
        return identity
    adapter = ADAPTERS.build(start, source_width=source_width, target_width=target_width, centre=centre).double()
    adapter.fit(pairs)
    return adapter.map
