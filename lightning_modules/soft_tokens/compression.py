"""A text in a few soft tokens: what the target makes of them, and how they are learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from data_modules.batches import ModelInput
from data_modules.data_module import BlockDataModule
from data_modules.pairing import Pairing
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.hidden_states.frozen_states import FrozenStates
from lightning_modules.nll import token_nll
from lightning_modules.stages.stage import Loss
from lightning_modules.training.submodule_training import SubmoduleTraining
from lightning_modules.two_models.cross_model import require_text
from registries.compressors.compressor import Compressor
from registries.registry import UserError

COMPRESSOR = "compressor"  # the submodule of the target that holds the encoder
Form = Literal["text", "truncated", "nothing"]


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


class ContinuationModule(CausalLMModule):
    """A causal language model that continues a text of which it has read, or not, the beginning.

    A block is a start token, if the model has one, a context and its continuation. Only the continuation is scored,
    without its first token, so that every form of the context is scored on the same tokens.

    Args:
        target: the module of the model.
        context: tokens of the context.
        tokens: of its end, that the truncated form has.
        form: what the model gets of the context: the `text` itself, the `truncated` text, or `nothing`.
    """

    reads_two_models = True

    def __init__(self, target: CausalLMModule, context: int, tokens: int, form: Form = "text"):
        super().__init__(**target.construction())
        self.context, self.tokens, self.form = context, tokens, form

    @property
    def opening(self) -> int:
        """Tokens of a block before its continuation."""
        return self.context + (self.start is not None)

    def require_data(self, data: BlockDataModule) -> None:
        require_continuation(self.context, data)

    def continuation_logits(self, blocks: Tensor) -> Tensor:
        """Logits at the continuation's tokens, (batch, continuation, vocabulary), for blocks (batch, length)."""
        start, context, rest = self._split(blocks)
        shown = {"text": context, "truncated": context[:, -self.tokens :], "nothing": context[:, :0]}[self.form]
        logits = self.model(input_ids=torch.cat([start, shown, rest], 1), use_cache=False).logits
        return logits[:, -rest.shape[1] :]

    def _split(self, blocks: Tensor) -> tuple[Tensor, ...]:
        """Start token (or nothing), context and continuation."""
        return blocks.tensor_split([self.opening - self.context, self.opening], dim=1)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        logits = self.continuation_logits(batch["input_ids"])
        rest = {key: tensor[:, self.opening :] for key, tensor in batch.items()}
        self.score_documents(self.score(logits, rest), rest)

    def continue_texts(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """Raises UserError: a prompt is no context of the length that is encoded, with a beginning of what follows."""
        raise UserError("a run with a compressor continues no prompts: score it on texts (dataset=...)")


def require_continuation(context: int, data: BlockDataModule) -> None:
    """Raise UserError unless the data are text, with something left of a block behind a context of so many tokens."""
    require_text(data)
    if context > data.text_size - 2:
        needed = context + 2 + data.settings.block_size - data.text_size
        raise UserError(
            f"dataset.block_size={data.settings.block_size} leaves no continuation of a context of {context} tokens: "
            f"set it to {needed} or more"
        )


class CompressionModule(ContinuationModule):
    """A causal language model that gets soft tokens in the place of a context, which a source model has read.

    Args:
        target, context: see `ContinuationModule`.
        states: of the source, which reads the context.
        pairing: of the tokens of both models.
        soft: makes the soft tokens; it becomes a part of the target's model.
        tokens: how many these are.
    """

    def __init__(
        self,
        target: CausalLMModule,
        context: int,
        tokens: int,
        states: FrozenStates,
        pairing: Pairing,
        soft: SoftTokens,
    ):
        super().__init__(target, context, tokens)
        self.states, self.pairing = states, pairing
        self.model.add_module(COMPRESSOR, soft)

    @property
    def source_model(self) -> nn.Module:
        """The model that reads the context."""
        return self.states.model

    @property
    def between(self) -> SoftTokens:
        """What lies between the two models."""
        return self.model.get_submodule(COMPRESSOR)

    def reserve(self, contexts: Tensor) -> None:
        """Make room in the cache for the source's states at contexts, (rows, opening) tokens of the target."""
        self.states.reserve([self._source_input(row) for row in contexts], len(contexts))

    def _source_input(self, context: Tensor) -> ModelInput:
        """A context, (opening,), as the source reads it."""
        return ModelInput(self.pairing(context.cpu()).tokens[None].to(self.source_model.device))

    def read(self, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """The source's states, (batch, longest, source width), and where there are any, for (batch, opening) tokens.

        The state of a row's first token is left out where there are others: it is far from all others and tells little.
        """
        states = [next(iter(self.states(self._source_input(row)).values()))[0] for row in contexts]
        states = [rows[1:] if len(rows) > 1 else rows for rows in states]
        padded = nn.utils.rnn.pad_sequence(states, batch_first=True)
        lengths = torch.tensor([len(rows) for rows in states], device=padded.device)
        return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]

    def continuation_logits(self, blocks: Tensor) -> Tensor:
        """As in `ContinuationModule`, after the soft tokens."""
        start, _, rest = self._split(blocks)
        soft = self.between(*self.read(blocks[:, : self.opening]))
        before, after = (self.model.get_input_embeddings()(tokens) for tokens in (start, rest))
        inputs = torch.cat([before, soft.to(after.dtype), after], 1)
        return self.model(inputs_embeds=inputs, use_cache=False).logits[:, -rest.shape[1] :]


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
