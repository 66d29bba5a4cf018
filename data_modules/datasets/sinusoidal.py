"""Quantised sums of sinusoids: smooth sequences that can be predicted from their past."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt

from data_modules import DATASETS
from data_modules.randomness import generator
from registries.registry import UserError

if TYPE_CHECKING:
    import torch


def _check(min_frequency: float, max_frequency: float) -> list[str]:
    if min_frequency > max_frequency:
        message = f"dataset 'sinusoidal': min_frequency={min_frequency} is above max_frequency={max_frequency}"
        return [f"{message}: lower the one or raise the other"]
    return []


@DATASETS.register("sinusoidal", check=_check)
class Sinusoidal:
    """The sum of sinusoids of random frequency and phase over t in [0, 4 pi], scaled to [0, 1], as `levels` token ids.

    Frequencies are uniform between `min_frequency` and `max_frequency` (radians per unit of t).
    """

    def __init__(
        self,
        num_frequencies: Annotated[int, Ge(1)] = 3,
        max_frequency: Annotated[float, Gt(0)] = 3.0,
        min_frequency: Annotated[float, Gt(0)] = 0.5,
        levels: Annotated[int, Ge(2)] = 256,
    ):
        self.num_frequencies = num_frequencies
        self.max_frequency = max_frequency
        self.min_frequency = min_frequency
        self.levels = levels

    def tokens(self, split: str, count: int, block_size: int, vocab_size: int, seed: int) -> torch.Tensor:
        """Token ids (count, block_size). Raises UserError where `levels` is more than the vocabulary size."""
        import torch

        if self.levels > vocab_size:
            raise UserError(
                f"dataset 'sinusoidal': dataset.levels={self.levels} is more than the vocabulary of {vocab_size} "
                f"tokens: set dataset.levels to at most {vocab_size}"
            )
        random = generator("sinusoidal", split, seed)
        shape = (count, self.num_frequencies, 1)
        span = self.max_frequency - self.min_frequency
        frequency = self.min_frequency + span * torch.rand(shape, generator=random)
        phase = 2 * math.pi * torch.rand(shape, generator=random)
        wave = torch.sin(frequency * torch.linspace(0, 4 * math.pi, block_size) + phase).sum(dim=1)
        low, high = wave.amin(dim=1, keepdim=True), wave.amax(dim=1, keepdim=True)
        return ((wave - low) / (high - low) * (self.levels - 1)).round().long()

    def position_groups(self, block_size: int) -> None:
        """No group of targets is reported apart."""
        return

    def entropy(self, block_size: int, vocab_size: int) -> None:
        """It is not known: how well a wave is told from its past depends on how it is rounded."""
        return
