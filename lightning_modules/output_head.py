"""A model's final hidden states, and the logits that its head makes of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from data_modules.batches import ModelInput
from registries.architectures import ARCHITECTURES


def final_output(model: nn.Module, inputs: ModelInput) -> Any:
    """What the model gives below its output head."""
    return model.base_model(**inputs.arguments, use_cache=False)


def final_states(model: nn.Module, inputs: ModelInput) -> Tensor:
    """Hidden states that go into the output head, (batch, length, hidden)."""
    return final_output(model, inputs).last_hidden_state


def output_logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """Logits of final hidden states, as the model itself computes them."""
    logits, config = model.get_output_embeddings()(hidden), model.config.get_text_config()
    if config.model_type in ARCHITECTURES and (change := ARCHITECTURES.get(config.model_type).logits) is not None:
        return change(logits, config)
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else (logits / cap).tanh() * cap
