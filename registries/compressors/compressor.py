"""The interface of compressors."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Compressor(Protocol):
    """A torch module, built with `source_width`, `target_width`, `tokens` and its keys of the config."""

    def __call__(self, states: Tensor, mask: Tensor) -> Tensor:
        """Soft tokens of a text.

        Args:
            states: (batch, length, source width); the texts of a batch may differ in length.
            mask: (batch, length), True where there is a state; the states of a text are at the beginning of its row.

        Returns:
            (batch, tokens, target width), about of size 1 in every entry.
        """
        ...
