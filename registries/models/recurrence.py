"""What lies between the embedding and the output head of a language model with a state of fixed size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from registries.registry import Registry

RECURRENCES = Registry("recurrence", package="registries.models")
MODEL_TYPE = "recurrent_lm"


class RecurrentOutput(NamedTuple):
    """What a recurrence gives.

    Attributes:
        hidden: (batch, length, output width), what the output head reads.
        state: tensors of (batch, ...) after the last token, from which the text can be continued.
        auxiliary_loss: (batch, length), a loss of every token that training adds to the next-token loss; None: none.
    """

    hidden: Tensor
    state: tuple[Tensor, ...]
    auxiliary_loss: Tensor | None = None


class Recurrence(Protocol):
    """A module that reads embeddings from left to right.

    Attributes:
        input_dim: width of the embeddings.
        output_dim: width of the hidden states.
        widths: the names of the arguments that are widths; all grow together where a number of parameters is asked for.
    """

    input_dim: int
    output_dim: int
    widths: ClassVar[tuple[str, ...]]

    def __call__(
        self, embeddings: Tensor, state: tuple[Tensor, ...] | None = None, starts: Tensor | None = None
    ) -> RecurrentOutput:
        """Hidden states of (batch, length, input width).

        Args:
            state: that of the text so far; None: the text begins.
            starts: (batch, length), whether a text begins at a token: what was before it must not be seen; None: none.
        """
        ...


def number_of_parameters(recurrence: type, arguments: Mapping[str, Any], num_tokens: int) -> int:
    """The parameters of the whole language model: embedding, recurrence, output head with its bias."""
    with torch.device("meta"):
        module = recurrence(**arguments)
    inside = sum(parameter.numel() for parameter in module.parameters())
    return inside + num_tokens * (module.input_dim + module.output_dim + 1)


def linear_layers(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Full name -> (inputs, outputs) of the linear layers of a model with this config."""
    with torch.device("meta"):
        module = RECURRENCES.build(config["recurrence"], **config["arguments"])
    inside = {
        f"model.recurrence.{name}": (layer.in_features, layer.out_features)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    }
    return {**inside, "lm_head": (module.output_dim, config["vocab_size"])}
