"""Random tokens that come again after a gap: what a model keeps in memory, counted in tokens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from data_modules import DATASETS
from data_modules.randomness import generator
from registries.registry import UserError

if TYPE_CHECKING:
    import torch


def _check(length: int, block_size: int | None = None) -> list[str]:
    if block_size is not None and block_size < 2 * length + 1:
        return [
            f"dataset 'copy': dataset.block_size={block_size} has no room for dataset.length={length} tokens twice and "
            f"a gap: set it to at least {2 * length + 1}"
        ]
    return []


@DATASETS.register("copy", check=_check)
class Copy:
    """`length` uniform symbols, a gap of token 0 up to the last `length` tokens of the block, and the symbols again.

    Args:
        length: symbols to remember.
        symbols: different symbols, the tokens 1 to `symbols`.
    """

    def __init__(self, length: Annotated[int, Ge(1)] = 8, symbols: Annotated[int, Ge(2)] = 16):
        self.length, self.symbols = length, symbols

    def tokens(self, split: str, count: int, block_size: int, vocab_size: int, seed: int) -> torch.Tensor:
        """Token ids (count, block_size). Raises UserError where there are more symbols than tokens."""
        import torch

        if self.symbols >= vocab_size:
            raise UserError(
                f"dataset 'copy': dataset.symbols={self.symbols} is too many for a vocabulary of {vocab_size} tokens: "
                f"set dataset.symbols to at most {vocab_size - 1}"
            )
        random = generator("copy", split, seed)
        symbols = torch.randint(1, self.symbols + 1, (count, self.length), generator=random)
        gap = torch.zeros(count, block_size - 2 * self.length, dtype=torch.int64)
        return torch.cat([symbols, gap, symbols], 1)

    def position_groups(self, block_size: int) -> dict[str, slice]:
        """The targets that nothing can predict, those of the gap, and the symbols that come again."""
        end = block_size - 1 - self.length
        return {"symbols": slice(0, self.length - 1), "gap": slice(self.length - 1, end), "copied": slice(end, None)}

    def entropy(self, block_size: int, vocab_size: int) -> float:
        """Nats per target that are left to a model that knows the rule: the first symbols but the very first one."""
        return (self.length - 1) * math.log(self.symbols) / (block_size - 1)
