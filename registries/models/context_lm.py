"""The context-vector model: one vector, updated token by token by a feed-forward stack that reads it with the token."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from registries.models.context_steps import LARGEST, Steps
from registries.models.fast_dropout import FastDropout
from registries.models.linear_scan import linear_scan
from registries.models.packed_linear import linear_relu
from registries.models.recurrence import RecurrentOutput
from registries.models.recurrent_loader import recurrent_model

Update = Literal["gated", "additive", "overwrite", "linear"]
Dimension = Annotated[int, Ge(1)]


@recurrent_model("context_lm")
class ContextVector(nn.Module):
    """A context c, zero before a text. For each token with embedding e: h = stack([e; c]), then c is updated from h.

    The stack has `num_layers` linear layers, each with a ReLU. A new context is normalised, LN, and clamped to +-10:

    - `gated`: LN(f * c + i * d) with d = W h, f = sigmoid(W_f h) and i = sigmoid(W_i h);
    - `additive`: LN(c + d);
    - `overwrite`: LN(tanh(d)), from which the context before it and the embedding are reconstructed: the mean squared
      error of that is added to the loss;
    - `linear`: f * c + (1 - f) * d, where d and f are more of the token's embedding and the stack reads LN(c). So all
      tokens of a text are computed together but for the products and sums of this one line. At the start
      of training, half of what a channel holds is gone after 1 to 256 tokens.

    Args:
        embed_dim: width of the embeddings.
        num_layers: linear layers of the stack.
        context_dim: width of the context.
        hidden_dim: width of the stack.
        update: how the context is updated.
        residual: add the input of each layer of the stack but the first to its output.
        norm: normalise the input of each layer of the stack but the first, and the stack's output.
        dropout: share of every layer's outputs that is dropped in training.
    """

    widths: ClassVar[tuple[str, ...]] = ("hidden_dim", "context_dim", "embed_dim")

    def __init__(
        self,
        embed_dim: Dimension = 256,
        num_layers: Annotated[int, Ge(1)] = 4,
        context_dim: Dimension = 256,
        hidden_dim: Dimension = 512,
        update: Update = "gated",
        residual: bool = False,
        norm: bool = False,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.1,
    ):
        super().__init__()
        self.embed_dim, self.context_dim, self.output_dim = embed_dim, context_dim, hidden_dim
        self.input_dim = embed_dim + (2 * context_dim if update == "linear" else 0)
        self.rule, self.residual = update, residual
        self.read = nn.Linear(embed_dim + context_dim, hidden_dim)
        self.layers = nn.ModuleList(nn.Linear(hidden_dim, hidden_dim) for _ in range(num_layers - 1))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in range(num_layers if norm else 0))
        self.dropout = FastDropout(dropout)
        if update == "linear":
            self.forget = nn.Parameter(first_forget(context_dim))
        else:
            self.change = nn.Linear(hidden_dim, (3 if update == "gated" else 1) * context_dim)
        self.context_norm = nn.LayerNorm(context_dim)
        if update == "overwrite":
            self.reconstruct = nn.Linear(context_dim, context_dim + embed_dim)

    def forward(
        self, embeddings: Tensor, state: tuple[Tensor, ...] | None = None, starts: Tensor | None = None
    ) -> RecurrentOutput:
        """See `Recurrence`. The state is the context after the last token, (batch, context width)."""
        context = embeddings.new_zeros(len(embeddings), self.context_dim) if state is None else state[0]
        if self.rule == "linear":
            return self._together(embeddings, context, starts)
        return self._in_turn(embeddings, context, starts)

    def _in_turn(self, embeddings: Tensor, context: Tensor, starts: Tensor | None) -> RecurrentOutput:
        by_step = embeddings.transpose(0, 1)
        kept = None if starts is None else (~starts).t()[..., None].to(embeddings.dtype)
        is_plain = all(type(layer) is nn.Linear for layer in (self.read, self.change, *self.layers))  # without LoRA
        compute = self._steps if is_plain and embeddings.is_cpu and len(by_step) > 1 else self._step_by_step
        hidden, after = compute(by_step, context, kept)
        loss = None
        if self.rule == "overwrite" and self.training:
            before = torch.cat([context[None], after[:-1]])
            old = torch.cat([before if kept is None else before * kept, by_step], -1)
            loss = (self.reconstruct(after) - old).square().mean(-1).t()
        return RecurrentOutput(hidden.transpose(0, 1), (after[-1],), loss)

    def _steps(self, by_step: Tensor, context: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """Hidden states and contexts after the tokens, (length, batch, width) each, by `Steps`."""
        of_embedding, of_context = self.read.weight.split([self.embed_dim, self.context_dim], 1)
        read, layers = nn.functional.linear(by_step, of_embedding, self.read.bias), len(self.layers)
        masks, scale = self.dropout.mask(read.device, 1 + layers, *read.shape), self.dropout.scale
        weights = [of_context, *self.change.parameters(), *self.context_norm.parameters()]
        weights += [*self.layers.parameters(), *self.norms.parameters()]
        return Steps.apply(self.rule, self.residual, layers, scale, masks, kept, read, context, *weights)

    def _step_by_step(self, by_step: Tensor, context: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same without a backward pass of its own."""
        hidden, after = [], []
        for step, embedding in enumerate(by_step):
            before = context if kept is None else context * kept[step]
            hidden.append(self._stack(self.read(torch.cat([embedding, before], -1)).relu()))
            context = self._updated(before, self.change(hidden[-1]))
            after.append(context)
        return torch.stack(hidden), torch.stack(after)

    def _stack(self, first: Tensor) -> Tensor:
        """The stack from the outputs of its first layer on, (..., hidden width)."""
        hidden = self.dropout(first)
        for index, layer in enumerate(self.layers):
            inputs = self.norms[index](hidden) if self.norms else hidden
            outputs = self.dropout(linear_relu(layer, inputs))
            hidden = hidden + outputs if self.residual else outputs
        return self.norms[-1](hidden) if self.norms else hidden

    def _updated(self, context: Tensor, change: Tensor) -> Tensor:
        if self.rule == "gated":
            new, forget, write = change.chunk(3, -1)
            context = forget.sigmoid() * context + write.sigmoid() * new
        else:
            context = context + change if self.rule == "additive" else change.tanh()
        return self.context_norm(context).clamp(-LARGEST, LARGEST)

    def _together(self, embeddings: Tensor, context: Tensor, starts: Tensor | None) -> RecurrentOutput:
        embeddings, new, forget = embeddings.split([self.embed_dim, self.context_dim, self.context_dim], -1)
        forget = (forget + self.forget).sigmoid()
        add = (1 - forget) * new
        if starts is not None:
            forget = forget.masked_fill(starts[..., None], 0)  # which is multiplied by what was before the token
        contexts = linear_scan(forget, add, context)
        before = torch.cat([context[:, None], contexts[:, :-1]], 1)
        if starts is not None:
            before = before.masked_fill(starts[..., None], 0)
        read = torch.cat([embeddings, self.context_norm(before).clamp(-LARGEST, LARGEST)], -1)
        return RecurrentOutput(self._stack(linear_relu(self.read, read)), (contexts[:, -1],))


def first_forget(width: int) -> Tensor:
    """(width,): logits of the shares that channels keep at each token, so that half is gone after 1 to 256 tokens."""
    half_lives = torch.logspace(0, 8, width, base=2)
    return torch.logit(0.5 ** (1 / half_lives))
