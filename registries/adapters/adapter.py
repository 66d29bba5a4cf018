"""What an adapter is: a map from the hidden states of one model, the source, to those of another, the target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from registries import ADAPTERS

if TYPE_CHECKING:
    pass
from registries.adapters.moments import Pairs


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


def is_trained(name: str) -> bool:
    """Whether an adapter of this name may have something to train; the others are done when they are fitted."""
    return getattr(ADAPTERS.get(name), "trained", True)
