"""Random tokens that repeat: what a model with a matching period should learn, and nothing else."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le

from data_modules import DATASETS
from data_modules.randomness import generator

if TYPE_CHECKING:
    import torch


def _check(period: int, block_size: int | None = None) -> list[str]:
    if block_size is not None and period >= block_size:
        message = f"dataset 'periodic': dataset.period={period} never repeats in dataset.block_size={block_size}"
        return [f"{message}: the period must be less than the block size"]
    return []


@DATASETS.register("periodic", check=_check)
class Periodic:
    """Uniform tokens tiled with a period, then disturbed.

    With probability 0.3 * noise a whole period is replaced by random tokens, and with probability 0.2 * noise a single
    token. At noise 0.1 the token one period back is right for 0.97^2 * 0.98^2 = 90 % of later tokens.
    """

    def __init__(self, period: Annotated[int, Ge(1)] = 32, noise: Annotated[float, Ge(0), Le(1)] = 0.1):
        self.period = period
        self.noise = noise

    def tokens(self, split: str, count: int, block_size: int, vocab_size: int, seed: int) -> torch.Tensor:
        """Token ids (count, block_size)."""
        import torch

        random = generator("periodic", split, seed)
        repeats = -(-block_size // self.period)
        shape = (count, repeats, self.period)
        pattern = torch.randint(vocab_size, (count, 1, self.period), generator=random)
        noise = torch.randint(vocab_size, shape, generator=random)
        noisy_period = torch.rand(count, repeats, 1, generator=random) < 0.3 * self.noise
        noisy_token = torch.rand(shape, generator=random) < 0.2 * self.noise
        return torch.where(noisy_period | noisy_token, noise, pattern).reshape(count, -1)[:, :block_size].contiguous()

    def position_groups(self, block_size: int) -> dict[str, slice]:
        """The targets of the first period, which nothing can predict, and the later targets."""
        return {"first_period": slice(0, self.period - 1), "later": slice(self.period - 1, block_size - 1)}

    def entropy(self, block_size: int, vocab_size: int) -> float | None:
        """Nats per target that are left to a model that knows the period: those of the first one; None with noise."""
        return None if self.noise else (self.period - 1) * math.log(vocab_size) / (block_size - 1)
