"""Recurrent language models as transformers has them: `import registries.recurrent_lm`, then `AutoModelForCausalLM`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from registries.models.recurrence import MODEL_TYPE, RECURRENCES

INITIAL_DEVIATION = 0.02  # of the weights, which are drawn from a normal distribution


class RecurrentConfig(PreTrainedConfig):
    """The config of a recurrent language model.

    Args:
        recurrence: name of the registered component between embedding and output head.
        arguments: its arguments.
        vocab_size: tokens.
    """

    model_type = MODEL_TYPE
    recurrence: str = ""
    arguments: dict | None = None
    vocab_size: int = 257
    hidden_size: int | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None


class RecurrentState:
    """What a recurrent model keeps of the text so far, in the place of a cache of keys and values.

    Attributes:
        tensors: of (batch, ...).
        seen: tokens that were read.
    """

    is_compileable = False

    def __init__(self, tensors: Sequence[Tensor], seen: int):
        self.tensors, self.seen = tuple(tensors), seen

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens were read."""
        return self.seen

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the rows of these beams."""
        self.tensors = tuple(tensor.index_select(0, beam_idx.to(tensor.device)) for tensor in self.tensors)


@dataclass
class RecurrentBaseOutput(ModelOutput):
    """Hidden states (batch, length, width), the state after the last token, and the auxiliary loss of every token."""

    last_hidden_state: Tensor | None = None
    past_key_values: RecurrentState | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    auxiliary_loss: Tensor | None = None


@dataclass
class RecurrentCausalLMOutput(ModelOutput):
    """As `RecurrentBaseOutput`, with logits (batch, length, vocabulary) and, where labels were given, their loss."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: RecurrentState | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    auxiliary_loss: Tensor | None = None


class RecurrentPreTrainedModel(PreTrainedModel):
    """Random weights: normal with a deviation of 0.02, biases 0; norms and LSTMs as torch draws them."""

    config_class = RecurrentConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = False
    _is_stateful = True
    _no_split_modules = []

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.normal_(std=INITIAL_DEVIATION)
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
        elif isinstance(module, (nn.LayerNorm, nn.RNNBase)):
            module.reset_parameters()


class RecurrentBaseModel(RecurrentPreTrainedModel):
    """Embedding and recurrence."""

    def __init__(self, config: RecurrentConfig):
        super().__init__(config)
        recurrence = RECURRENCES.build(config.recurrence, **config.arguments)
        self.embed_tokens = nn.Embedding(config.vocab_size, recurrence.input_dim)
        self.recurrence = recurrence
        config.hidden_size = recurrence.output_dim
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: RecurrentState | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> RecurrentBaseOutput:
        """Read a text, or its continuation.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length of all that was read), 0 for filling.
            position_ids: (batch, length), 0 where a text begins.
            past_key_values: the state after what was read before.
            inputs_embeds: (batch, length, width of the embedding), in the place of `input_ids`.
        """
        embeddings = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        length = embeddings.shape[1]
        starts = beginnings(attention_mask, position_ids, length, past_key_values is not None)
        state = None if past_key_values is None else past_key_values.tensors
        output = self.recurrence(embeddings, state, starts)
        seen = length + (0 if past_key_values is None else past_key_values.seen)
        return RecurrentBaseOutput(
            last_hidden_state=output.hidden,
            past_key_values=RecurrentState(output.state, seen) if use_cache is not False else None,
            hidden_states=(embeddings, output.hidden) if output_hidden_states else None,
            auxiliary_loss=output.auxiliary_loss,
        )


class RecurrentForCausalLM(RecurrentPreTrainedModel, GenerationMixin):
    """A recurrent language model."""

    def __init__(self, config: RecurrentConfig):
        super().__init__(config)
        self.model = RecurrentBaseModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: RecurrentState | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> RecurrentCausalLMOutput:
        """Logits of the tokens that follow; see `RecurrentBaseModel.forward`.

        Args:
            labels: (batch, length), unshifted, -100 where nothing is scored.
            logits_to_keep: of how many last positions; 0: of all.
        """
        output = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, output_hidden_states
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(output.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return RecurrentCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            auxiliary_loss=output.auxiliary_loss,
        )

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the state is made by the first forward pass


def beginnings(mask: Tensor | None, positions: Tensor | None, length: int, continued: bool) -> Tensor | None:
    """(batch, length): where texts begin, so that nothing before may be seen; None: at the left end alone."""
    if mask is not None and not continued and not bool(mask.all()):
        real = mask[:, -length:].bool()
        return real & (real.cumsum(1) == 1)
    if positions is not None and length > 1:
        starts = positions == 0
        return starts if bool(starts[:, 1:].any()) else None
    return None


AutoConfig.register(MODEL_TYPE, RecurrentConfig, exist_ok=True)
AutoModel.register(RecurrentConfig, RecurrentBaseModel, exist_ok=True)
AutoModelForCausalLM.register(RecurrentConfig, RecurrentForCausalLM, exist_ok=True)
