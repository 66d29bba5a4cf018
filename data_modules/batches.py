"""What a batch holds: what of it goes into a model, which of its tokens are real, and which are scored.

A batch holds `input_ids` (batch, length). Where its rows hold several examples that must not see each other, it also
holds `position_ids`, which start anew with each: transformers masks accordingly where no attention mask is given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ModelInput:
    """Everything that a model reads.

    Attributes:
        tokens: (batch, length).
        positions: (batch, length) of the tokens in their examples; None where a text is read through.
    """

    tokens: Tensor
    positions: Tensor | None = None

    @classmethod
    def of(cls, batch: Mapping[str, Tensor]) -> ModelInput:
        """What a model reads of a batch."""
        return cls(batch["input_ids"], batch.get("position_ids"))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def arguments(self) -> dict[str, Tensor]:
        """The keyword arguments of a model's forward pass."""
        positions = {} if self.positions is None else {"position_ids": self.positions}
        return {"input_ids": self.tokens, **positions}

    def __getitem__(self, rows: slice | Tensor) -> ModelInput:
        """Some of the rows."""
        return ModelInput(self.tokens[rows], None if self.positions is None else self.positions[rows])

    def rows(self) -> Iterator[ModelInput]:
        """The rows, each as a batch of its own."""
        return (self[index : index + 1] for index in range(len(self)))

    def digest(self) -> str:
        """A name that no other content has."""
        parts = [self.tokens] if self.positions is None else [self.tokens, self.positions]
        return hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in parts)).hexdigest()[:32]


def is_real(batch: Mapping[str, Tensor]) -> Tensor:
    """(batch, length): whether a token is of a text, and no filling."""
    if "attention_mask" in batch:
        return batch["attention_mask"] > 0
    return batch.get("documents", torch.zeros_like(batch["input_ids"])) >= 0


def scored_labels(batch: Mapping[str, Tensor]) -> Tensor:
    """(batch, length) tokens as labels, unshifted; -100 where a token is not scored.

    Filling is not scored, nor is the first token behind it, which nothing precedes.
    """
    labels, mask = batch.get("labels"), batch.get("attention_mask")
    if labels is not None:
        return labels
    if mask is None:
        return batch["input_ids"]
    preceded = torch.cat([mask[:, :1], mask[:, :-1]], 1)
    return batch["input_ids"].masked_fill((mask == 0) | (preceded == 0), -100)


def positions_of(mask: Tensor) -> Tensor:
    """(batch, length): the positions of tokens among those that a mask (batch, length) leaves."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def scored_tokens(batch: Mapping[str, Tensor]) -> int:
    """How many tokens of a batch are scored: the first one of a row never is."""
    return int((scored_labels(batch)[:, 1:] != -100).sum())


def passes_of(batch: Mapping[str, Tensor], blocks: int) -> list[dict[str, Tensor]]:
    """A batch cut into parts of so many blocks."""
    parts = {key: tensor.split(blocks) for key, tensor in batch.items()}
    return [dict(zip(parts, tensors, strict=True)) for tensors in zip(*parts.values(), strict=True)]
