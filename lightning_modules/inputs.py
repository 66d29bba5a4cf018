"""What of a batch goes into a model, and what of it names its activations.

A batch holds `input_ids` (batch, length). Where its rows hold several examples that must not see each other, it also
holds `position_ids`, which start anew with each: transformers masks accordingly where no attention mask is given.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def rows_of(tokens: Tensor, positions: Tensor | None) -> Tensor:
    """Everything that a model reads: (batch, length) tokens, or (batch, length, 2) tokens and positions."""
    return tokens if positions is None else torch.stack([tokens, positions], dim=-1)


def batch_rows(batch: Mapping[str, Tensor]) -> Tensor:
    """The rows of a batch."""
    return rows_of(batch["input_ids"], batch.get("position_ids"))


def model_inputs(rows: Tensor) -> dict[str, Tensor]:
    """The keyword arguments of a model's forward pass for rows."""
    if rows.dim() == 2:
        return {"input_ids": rows}
    return {"input_ids": rows[..., 0], "position_ids": rows[..., 1]}


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
