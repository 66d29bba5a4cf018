"""What a compressor is: an encoder from the hidden states of a text to a few soft tokens."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Compressor(Protocol):
    """What a compressor is: a torch module, built with `source_width`, `target_width`, `tokens` and its own keys."""

    def __call__(self, states: Tensor, mask: Tensor) -> Tensor:
        """Soft tokens of a text.

        Args:
            states: (batch, length, source width); the lengths of a batch's texts may differ.
            mask: (batch, length), True where there is a state; all of a text's are at the beginning of its row.

        Returns:
            (batch, tokens, target width), about of size 1 in every entry.
        """
        ...
