"""Continuations by the target of a prompt that only the source has read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from data_modules.batches import ModelInput, positions_of
from lightning_modules.hidden_states.injection import block_entry, injected
from lightning_modules.hidden_states.recorded_calls import record_calls


class Continuation:
    """Next-token logits after a prompt of which only the hidden states that enter a block are known.

    The blocks from there on keep the prompt in their caches, those below only what came after it; so there is a cache
    for each part, and each new token passes the parts one after the other.

    Args:
        model: a causal LM in evaluation mode.
        layer: the block that the states enter.
    """

    def __init__(self, model: nn.Module, layer: int):
        from transformers import DynamicCache

        self.model, self.layer = model, layer
        self.below, self.above = (DynamicCache(config=model.config.get_text_config()) for _ in range(2))

    def begin(self, states: Tensor, mask: Tensor, first: int | None = None) -> Tensor:
        """Read the prompt: (batch, length, hidden) states, (batch, length) 1 where they are; left-padded.

        Args:
            first: a token that the blocks below see in the first place of the prompt; None: they see nothing of it.

        Returns:
            (batch, vocabulary), of the token after it.
        """
        self.mask = mask[:, :1] * 0 + 1
        if first is not None and self.layer:
            self._pass_below(torch.full_like(self.mask, first))
        self.mask = mask
        return self._pass_above(torch.zeros_like(mask), states)

    def step(self, tokens: Tensor) -> Tensor:
        """Read on, (batch, length) tokens. Returns (batch, vocabulary), of the token after them."""
        self.mask = torch.cat([self.mask, torch.ones_like(tokens)], 1)
        return self._pass_above(tokens, self._pass_below(tokens) if self.layer else None)

    def _positions(self, length: int) -> Tensor:
        return positions_of(self.mask)[:, -length:]

    def _pass_above(self, tokens: Tensor, states: Tensor | None) -> Tensor:
        """Through the blocks from the site on; through all of them, from the tokens on, without states."""
        length = tokens.shape[1]
        inputs = {
            "input_ids": tokens,
            "attention_mask": self.mask,
            "position_ids": self._positions(length),
            "past_key_values": self.above,
            "use_cache": True,
        }
        if states is None:
            return self.model(**inputs).logits[:, -1]
        with injected(self.model, self.layer, states):
            logits = self.model(**inputs).logits[:, -1]
        nothing = states.new_zeros(len(tokens), 1, length, 1)
        for layer in range(self.layer):  # the mask is made for the length of the first layer's cache
            self.above.update(nothing, nothing, layer)
        return logits

    def _pass_below(self, tokens: Tensor) -> Tensor:
        """Through the blocks below the site. Returns what leaves them, (batch, length, hidden)."""
        path, _ = block_entry(self.model, self.layer)
        inputs = {"position_ids": self._positions(tokens.shape[1]), "past_key_values": self.below, "use_cache": True}
        return record_calls(self.model, [path], ModelInput(tokens), **inputs)[path].output


def until_end(tokenizer: Any, tokens: list[int]) -> str:
    """The text of tokens up to the end token."""
    end = tokenizer.eos_token_id
    return tokenizer.decode(tokens[: tokens.index(end)] if end in tokens else tokens, skip_special_tokens=True)
