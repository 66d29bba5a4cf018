"""A text in a few soft tokens: what the target makes of them, and how they are learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from data_modules.pairing import Pairing
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.hidden_states.frozen_states import FrozenStates
from lightning_modules.nll import token_nll
from lightning_modules.stages.stage import Loss
from lightning_modules.training.submodule_training import SubmoduleTraining
from registries.compressors.compressor import Compressor
from registries.registry import UserError

COMPRESSOR = "compressor"  # the submodule of the target that holds the encoder
Form = Literal["soft", "text", "truncated", "nothing"]


class SoftTokens(nn.Module):
    """An encoder between two models: states come in, and embeddings go out, in units in which both have size one.

    Args:
        encoder: the compressor.
    """

    def __init__(self, encoder: Compressor):
        super().__init__()
        self.encoder = encoder
        self.register_buffer("source_scale", torch.ones(()))
        self.register_buffer("target_scale", torch.ones(()))

    def measure(self, states: Tensor, mask: Tensor, embeddings: Tensor) -> None:
        """Take the sizes (root mean squares) of states where they are, and of embeddings."""
        self.source_scale.copy_(states[mask].float().square().mean().sqrt())
        self.target_scale.copy_(embeddings.float().square().mean().sqrt())

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """(batch, length, source width), (batch, length) -> (batch, tokens, target width)."""
        return self.encoder(states.float() / self.source_scale, mask) * self.target_scale


class CompressionModule(CausalLMModule):
    """A causal language model that continues a text of which it has read, or been told, the beginning.

    A block is a start token, if the model has one, a context and its continuation. Only the continuation is scored,
    without its first token, so that every form is scored on the same tokens.

    Attributes:
        form: what the target gets of the context: the `soft` tokens of the encoder, the `text` itself, the
            `truncated` text of as many of its last tokens, or `nothing`.
        context: tokens of the context.
        tokens: soft tokens.
        states: of the source, which reads the context; pairing: what it reads.
    """

    source_model: nn.Module
    form: Form = "soft"
    context: int
    tokens: int
    states: FrozenStates
    pairing: Pairing

    def compress(self, states: FrozenStates, pairing: Pairing, context: int, tokens: int) -> None:
        """Set what reads the context; `encode` says how it is encoded."""
        self.source_model = states.model
        self.states, self.pairing, self.context, self.tokens = states, pairing, context, tokens

    def encode(self, soft: SoftTokens) -> None:
        """Encode by this from now on."""
        self.model.add_module(COMPRESSOR, soft)

    @property
    def opening(self) -> int:
        """Tokens of a block before its continuation."""
        return self.context + (self.start is not None)

    def read(self, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """The source's states, (batch, longest, source width), and where there are any, for (batch, opening) tokens.

        The state of a row's first token is left out where there are others: it is far from all others and tells little.
        """
        rows = [self.pairing(row.cpu()).tokens for row in contexts]
        found = [next(iter(self.states(row[None].to(self.source_model.device)).values()))[0] for row in rows]
        found = [states[1:] if len(states) > 1 else states for states in found]
        padded = nn.utils.rnn.pad_sequence(found, batch_first=True)
        lengths = torch.tensor([len(states) for states in found], device=padded.device)
        return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]

    def continuation_logits(self, blocks: Tensor) -> Tensor:
        """Logits at the continuation's tokens, (batch, continuation, vocabulary), for blocks (batch, length)."""
        start, context, rest = blocks.tensor_split([self.opening - self.context, self.opening], dim=1)
        if self.form == "soft":
            soft = self.model.get_submodule(COMPRESSOR)(*self.read(blocks[:, : self.opening]))
            before, after = (self.model.get_input_embeddings()(tokens) for tokens in (start, rest))
            inputs = torch.cat([before, soft.to(after.dtype), after], 1)
            logits = self.model(inputs_embeds=inputs, use_cache=False).logits
        else:
            shown = {"text": context, "truncated": context[:, -self.tokens :], "nothing": context[:, :0]}[self.form]
            logits = self.model(input_ids=torch.cat([start, shown, rest], 1), use_cache=False).logits
        return logits[:, -rest.shape[1] :]

    def continue_texts(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """Raises UserError: a prompt is no context of the length that is encoded, with a beginning of what follows."""
        raise UserError("a run with a compressor continues no prompts: score it on texts (dataset=...)")

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        logits = self.continuation_logits(batch["input_ids"])
        rest = {key: tensor[:, self.opening :] for key, tensor in batch.items()}
        self.score_documents(self.score(logits, rest), rest)


@dataclass
class CompressionTraining(SubmoduleTraining):
    """Trains an encoder by the target's loss on the continuation.

    Attributes:
        module: of both models.
    """

    module: CompressionModule

    submodule: ClassVar = COMPRESSOR

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Loss:
        """The loss of the continuations of a batch of blocks, summed over their tokens."""
        rest = batch["input_ids"][:, self.module.opening :]
        nll = token_nll(self.module.continuation_logits(batch["input_ids"]), rest)
        return Loss(nll.sum(), nll.numel())
