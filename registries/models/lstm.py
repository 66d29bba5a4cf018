"""The LSTM, a baseline for models with a state of fixed size."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from registries.models.fast_dropout import FastDropout
from registries.models.recurrence import RecurrentOutput
from registries.models.recurrent_loader import recurrent_model


@recurrent_model("lstm")
class LSTM(nn.Module):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997), as torch has it.

    Args:
        embed_dim: width of the embeddings.
        num_layers: layers on top of each other.
        hidden_dim: width of each.
        dropout: share of every layer's outputs that is dropped in training.
    """

    widths: ClassVar[tuple[str, ...]] = ("hidden_dim", "embed_dim")

    def __init__(
        self,
        embed_dim: Annotated[int, Ge(1)] = 256,
        num_layers: Annotated[int, Ge(1)] = 1,
        hidden_dim: Annotated[int, Ge(1)] = 512,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.1,
    ):
        super().__init__()
        self.input_dim, self.output_dim = embed_dim, hidden_dim
        between = dropout if num_layers > 1 else 0.0
        self.cells = nn.LSTM(embed_dim, hidden_dim, num_layers, batch_first=True, dropout=between)
        self.dropout = FastDropout(dropout)

    def forward(
        self, embeddings: Tensor, state: tuple[Tensor, ...] | None = None, starts: Tensor | None = None
    ) -> RecurrentOutput:
        """See `Recurrence`. The state is the hidden states and the cells of all layers, (batch, layers, width) each."""
        both = None if state is None else tuple(tensor.transpose(0, 1).contiguous() for tensor in state)
        if starts is None:
            hidden, both = self.cells(embeddings, both)
        else:
            hidden, both = self._in_pieces(embeddings, both, starts)
        return RecurrentOutput(self.dropout(hidden), tuple(tensor.transpose(0, 1) for tensor in both))

    def _in_pieces(
        self, embeddings: Tensor, state: tuple[Tensor, ...] | None, starts: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The hidden states, cut wherever a text begins in some row; the state of these rows is emptied there."""
        cuts = [0, *(starts.any(0).nonzero().flatten().tolist()), embeddings.shape[1]]
        pieces = []
        for begin, end in pairwise(cuts):
            if begin == end:
                continue
            if state is not None:
                state = tuple(tensor.masked_fill(starts[:, begin, None], 0) for tensor in state)
            hidden, state = self.cells(embeddings[:, begin:end], state)
            pieces.append(hidden)
        return torch.cat(pieces, 1), state
