"""The interface of adapters."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from registries import ADAPTERS
from registries.adapters.moments import Pairs


class Adapter(Protocol):
    """A torch module, built with `source_width`, `target_width` and its keys of the config.

    An adapter without parameters says so by `trained = False`, and gets no keys for training.
    """

    def __call__(self, states: Tensor) -> Tensor:
        """(..., source width) -> (..., target width), in the dtype of the states."""
        ...

    def fit(self, pairs: Pairs) -> None:
        """Take scales, means, a start or the whole solution from batches (rows, source width), (rows, target width)."""
        ...


def is_trained(name: str) -> bool:
    """Whether an adapter of this name is trained after it was fitted."""
    return getattr(ADAPTERS.get(name), "trained", True)
