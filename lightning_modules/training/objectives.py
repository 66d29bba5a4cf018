"""End-to-end objectives of a language model, summed over tokens, with the vocabulary in chunks where asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data_modules.batches import ModelInput, scored_labels
from lightning_modules.hidden_states.frozen_prefix import FrozenPrefix
from lightning_modules.nll import IGNORED, target_nll, token_divergence
from lightning_modules.output_head import final_output, final_states, output_logits
from lightning_modules.stages.stage import Loss, Workspace
from lightning_modules.training.teacher import Teacher

Objective = Literal["next_token", "kl"]
HEAD_ROWS = 256  # at a time through the vocabulary head of a processor, whose products are slower with fewer or more


class EndToEnd:
    """The objective of a stage that trains through the whole model; layers below what trains run once per block.

    Args:
        model: of which exactly what the stage trains requires gradients.
        workspace: of the run.
        visits: training blocks that the stage sees, repetitions included.
        objective: `next_token`: the negative log-likelihood of the text; `kl`: the divergence from a teacher.
        temperature, teacher: of the divergence; see `divergence` and `Teacher`.
    """

    def __init__(
        self,
        model: nn.Module,
        workspace: Workspace,
        visits: int,
        objective: Objective = "next_token",
        temperature: float = 1.0,
        teacher: str | None = None,
    ):
        self.chunk_size, self.temperature = workspace.loss_chunk_size, temperature
        self.prefix = FrozenPrefix(model, workspace)
        self.teacher = Teacher(workspace, teacher) if objective == "kl" else None
        for part in filter(None, (self.prefix, self.teacher)):
            part.reserve(workspace.train_rows(), visits)

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Loss:
        """The loss of a batch, summed over its scored tokens."""
        inputs, labels = ModelInput.of(batch), scored_labels(batch)
        teacher_states = self.teacher.final_states(inputs) if self.teacher else None
        with self.prefix.read_back(inputs):
            if self.teacher is not None:
                total, parts = (
                    divergence(
                        model, self.teacher.model, inputs, labels, teacher_states, self.temperature, self.chunk_size
                    ),
                    {},
                )
            else:
                total, parts = next_token_loss(model, inputs, labels, self.chunk_size)
        return Loss(total, int((labels[:, 1:] != IGNORED).sum()), parts)


def next_token_loss(
    model: nn.Module, inputs: ModelInput, labels: Tensor, chunk_size: int | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """As `next_token_nll`, plus the auxiliary loss of models that have one, and then both as parts."""
    scored = labels[:, 1:] != IGNORED
    output = final_output(model, inputs)
    nll = _scored_nll(model, output.last_hidden_state, labels, chunk_size)
    auxiliary = getattr(output, "auxiliary_loss", None)
    if auxiliary is None:
        return nll, {}
    auxiliary = auxiliary[:, :-1][scored].sum()
    return nll + auxiliary, {"nll": nll.detach(), "auxiliary": auxiliary.detach()}


def next_token_nll(model: nn.Module, inputs: ModelInput, labels: Tensor, chunk_size: int | None = None) -> Tensor:
    """Summed negative log-likelihood of the scored tokens, each given those before it.

    Args:
        inputs: what the model reads.
        labels: (batch, length), unshifted; -100 is not scored.
        chunk_size: tokens whose logits exist at a time; the backward pass computes them again. None: all are kept.
    """
    return _scored_nll(model, final_states(model, inputs), labels, chunk_size)


def _scored_nll(model: nn.Module, states: Tensor, labels: Tensor, chunk_size: int | None) -> Tensor:
    scored = labels[:, 1:] != IGNORED
    hidden, targets = states[:, :-1][scored], labels[:, 1:][scored]

    def nll(hidden: Tensor, targets: Tensor) -> Tensor:
        return target_nll(output_logits(model, hidden), targets).sum()

    return _summed(nll, chunk_size, hidden, targets)


def divergence(
    model: nn.Module,
    teacher: nn.Module,
    inputs: ModelInput,
    labels: Tensor,
    teacher_states: Tensor,
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> Tensor:
    """Summed KL divergence KL(teacher || model) of the next-token distributions, times temperature squared.

    The distributions are softened by the temperature (Hinton et al., arXiv 1503.02531); the square keeps the size of
    the gradients. Like the negative log-likelihood, it is summed over the positions before scored tokens.

    Args:
        inputs, labels: as in `next_token_nll`.
        teacher_states: final hidden states of the teacher, (batch, length, its width).
    """
    scored = labels[:, 1:] != IGNORED
    hidden, target = final_states(model, inputs)[:, :-1][scored], teacher_states[:, :-1][scored]

    def divergence(hidden: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = output_logits(teacher, target)
        return token_divergence(output_logits(model, hidden), teacher_logits, temperature).sum() * temperature**2

    return _summed(divergence, chunk_size, hidden, target)


def _summed(function: Callable[[Tensor, Tensor], Tensor], chunk_size: int | None, *rows: Tensor) -> Tensor:
    """The sum of a function of rows of final hidden states.

    Without a chunk size, a processor still takes `HEAD_ROWS` at a time, but keeps all for the backward pass.
    """
    size = chunk_size or (len(rows[0]) if rows[0].is_cuda else HEAD_ROWS)
    chunks = zip(*(tensor.split(max(1, size)) for tensor in rows), strict=True)  # of no rows, one of none
    if chunk_size is not None and chunk_size < len(rows[0]):
        function = partial(checkpoint, function, use_reentrant=False)
    return torch.stack([function(*chunk) for chunk in chunks]).sum()
