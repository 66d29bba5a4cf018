"""Tokens -> blocks, and the order in which training sees them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import torch
from torch.utils.data import Dataset, Sampler

from data_modules.randomness import generator


@dataclass(frozen=True)
class Blocks:
    """Blocks of tokens.

    Args:
        tokens: (blocks, block_size), int64.
        documents: (blocks, block_size), int64: the number of each token's document; -1 for padding.
        labels: (blocks, block_size), int64: the tokens that are scored, -100 at all other positions. With labels,
            documents do not see each other; None scores every token, and text runs on from block to block.
    """

    tokens: torch.Tensor
    documents: torch.Tensor
    labels: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, rows: torch.Tensor) -> Blocks:
        """The blocks with these indices, (rows,)."""
        return Blocks(self.tokens[rows], self.documents[rows], None if self.labels is None else self.labels[rows])

    def begun_with(self, start: int | None) -> Blocks:
        """These blocks, each behind a start token, which is never scored; None leaves them as they are."""
        if start is None:
            return self
        tokens = torch.cat([torch.full_like(self.tokens[:, :1], start), self.tokens], 1)
        return Blocks(tokens, torch.cat([self.documents[:, :1], self.documents], 1))

    @cached_property
    def positions(self) -> torch.Tensor | None:
        """(blocks, block_size): the position of each token in its document, by which a model tells documents apart.

        None where documents are not kept apart.
        """
        if self.labels is None:
            return None
        columns = torch.arange(self.tokens.shape[1]).expand_as(self.tokens)
        starts = torch.zeros_like(self.tokens)
        is_start = self.documents[:, 1:] != self.documents[:, :-1]
        starts[:, 1:][is_start] = columns[:, 1:][is_start]
        return columns - starts.cummax(1).values

    def row(self, index: int) -> dict[str, torch.Tensor]:
        """The tensors of one block that a model and its loss need."""
        if self.labels is None:
            return {"input_ids": self.tokens[index]}
        return {
            "input_ids": self.tokens[index],
            "labels": self.labels[index],
            "position_ids": self.positions[index],
            "documents": self.documents[index],
        }


def pack(ids: torch.Tensor, documents: torch.Tensor, block_size: int) -> Blocks:
    """Blocks without padding from ids (tokens,) and their document numbers (tokens,); the remainder is dropped."""
    count = len(ids) // block_size
    rows = [tensor[: count * block_size].reshape(count, block_size).long() for tensor in (ids, documents)]
    return Blocks(*rows)


def one_document_each(tokens: torch.Tensor) -> Blocks:
    """Tokens (blocks, block_size) as blocks of which each is a document of its own."""
    return Blocks(tokens, torch.arange(len(tokens))[:, None].expand_as(tokens))


def choose_spread(count: int, size: int) -> torch.Tensor:
    """Indices of `size` of `count` blocks, in order: a random one from each of `size` equal stretches.

    `size` is at most `count`. Equal arguments give equal indices.
    """
    edges = torch.arange(size + 1) * count // size
    offsets = torch.rand(size, generator=generator("choose_spread"), dtype=torch.float64)
    return edges[:-1] + (offsets * edges.diff()).long()


def doubling_groups(block_size: int) -> dict[str, slice]:
    """Groups of the positions 0-255, 256-511, 512-1023, ... of a block; the last group ends with the block."""
    edges = [0, 256]
    while edges[-1] < block_size:
        edges.append(2 * edges[-1])
    ends = [min(edge, block_size) for edge in edges]
    # Target i is token i + 1, so the tokens from start to end are the targets from start - 1 to end - 1.
    return {
        f"positions_{start}_{end - 1}": slice(max(start - 1, 0), end - 1)
        for start, end in pairwise(ends)
        if end - 1 > max(start - 1, 0)
    }


class BlockDataset(Dataset):
    """Blocks in order, with the document numbers of their tokens."""

    def __init__(self, blocks: Blocks):
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {**self.blocks.row(index), "documents": self.blocks.documents[index]}


class EndlessBlocks(Dataset):
    """Blocks by their index in an endless stream: epoch after epoch, each epoch in another order.

    The block at an index depends on (seed, stream, index) alone, so a resumed run carries no state.
    """

    def __init__(self, blocks: Blocks, seed: int, stream: str):
        self.blocks = blocks
        self.seed = seed
        self.stream = stream

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch, rank = divmod(index, len(self.blocks))
        return self.blocks.row(_permutation(len(self.blocks), self.seed, self.stream, epoch)[rank])


class StepSampler(Sampler):
    """Batches of indices of `EndlessBlocks` for the steps from `start` on.

    Its length also counts the steps before `start`, since Lightning counts on from the checkpoint after a resume.
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
