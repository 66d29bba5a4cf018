"""Tokens -> blocks, and the order in which training sees them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch.utils.data import Dataset, Sampler

from data_modules.randomness import generator


def pack(ids: torch.Tensor, block_size: int) -> torch.Tensor:
    """Ids (tokens,) -> blocks (blocks, block_size), int64, without padding; the remainder is dropped."""
    count = len(ids) // block_size
    return ids[: count * block_size].reshape(count, block_size).long()


def choose_spread(blocks: torch.Tensor, size: int) -> torch.Tensor:
    """`size` of the blocks, in order: one at random from each of `size` equal stretches, always the same ones.

    `size` is at most the number of blocks.
    """
    edges = torch.arange(size + 1) * len(blocks) // size
    offsets = torch.rand(size, generator=generator("choose_spread"), dtype=torch.float64)
    return blocks[edges[:-1] + (offsets * edges.diff()).long()]


class BlockDataset(Dataset):
    """Blocks (blocks, block_size) in order."""

    def __init__(self, blocks: torch.Tensor):
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.blocks[index]}


class EndlessBlocks(Dataset):
    """Blocks by their position in an endless stream: epoch after epoch, each in an order of its own.

    What stands at a position depends on (seed, stream, position) alone, so a resumed run carries no state.
    """

    def __init__(self, blocks: torch.Tensor, seed: int, stream: str):
        self.blocks = blocks
        self.seed = seed
        self.stream = stream

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        epoch, place = divmod(position, len(self.blocks))
        return {"input_ids": self.blocks[_permutation(len(self.blocks), self.seed, self.stream, epoch)[place]]}


class StepSampler(Sampler):
    """Batches of positions for the steps from `start` on.

    Its length counts the steps before `start` too: after a resume, Lightning goes on counting from the checkpoint.
    """

    def __init__(self, steps: int, start: int, blocks_per_step: int):
        self.steps = steps
        self.start = start
        self.blocks_per_step = blocks_per_step

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.steps):
            yield list(range(step * self.blocks_per_step, (step + 1) * self.blocks_per_step))


@lru_cache(maxsize=4)  # a step may reach from one epoch into the next
def _permutation(count: int, seed: int, stream: str, epoch: int) -> torch.Tensor:
    return torch.randperm(count, generator=generator("order", seed, stream, epoch))
