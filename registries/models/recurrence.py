"""Language models with a state of fixed size: what a new one has to be, and how it becomes a model of the registry.

Embedding, output head, generation, saving and loading are the same for all and stand in `registries.recurrent_lm`; a
component is the part between embedding and head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, Signature
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol

import torch
from annotated_types import Ge
from torch import Tensor, nn

from registries import MODELS
from registries.models.sizes import ParameterCount, of_size
from registries.registry import Registry, defaults
from registries.registry import parameters as parameters_of

RECURRENCES = Registry("recurrence", package="registries.models")
MODEL_TYPE = "recurrent_lm"

# What the model of every recurrence takes beside the recurrence's own arguments.
SHARED = (
    Parameter("parameters", Parameter.KEYWORD_ONLY, default=None, annotation=ParameterCount | None),
    Parameter("num_tokens", Parameter.KEYWORD_ONLY, default=257, annotation=Annotated[int, Ge(2)]),
)


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


class RecurrentModel:
    """The loader of a recurrent language model with random weights, see `ModelLoader`.

    Args:
        recurrence: name of the component.
        arguments: its arguments.
        vocab_size: tokens of its vocabulary.
    """

    def __init__(self, recurrence: str, arguments: Mapping[str, Any], vocab_size: int):
        self._config = {
            "model_type": MODEL_TYPE,
            "recurrence": recurrence,
            "arguments": dict(arguments),
            "vocab_size": vocab_size,
        }

    def config(self) -> dict[str, Any]:
        return self._config

    def identity(self) -> str:
        """The weights follow from the config and the seed."""
        return ""

    def tokenizer(self) -> Any:
        from registries.models.random import byte_tokenizer

        return byte_tokenizer()

    def model(self, dtype: Any) -> Any:
        from registries.recurrent_lm import RecurrentConfig, RecurrentForCausalLM

        options = {key: value for key, value in self._config.items() if key != "model_type"}
        model = RecurrentForCausalLM(RecurrentConfig(**options)).to(dtype)
        model.config.dtype = dtype
        return model.eval()


def recurrent_model(name: str, check: Callable[..., list[str]] | None = None) -> Callable[[type], type]:
    """Decorator that registers a recurrence, and the language model that is made of it.

    The model's keys are the recurrence's arguments and `parameters`: how many the whole model is to have. Then the
    widths are multiplied by whatever gives that number.
    """

    def add(recurrence: type) -> type:
        @wraps(recurrence, assigned=("__module__", "__doc__", "__qualname__"), updated=())
        def load(num_tokens: int = 257, parameters: ParameterCount | None = None, **arguments: Any) -> RecurrentModel:
            arguments = {**defaults(recurrence), **arguments}
            if parameters is not None:

                def count(sized: Mapping[str, Any]) -> int:
                    return number_of_parameters(recurrence, sized, num_tokens)

                arguments = of_size(count, arguments, recurrence.widths, parameters)
            return RecurrentModel(name, arguments, num_tokens)

        own = (item.replace(kind=Parameter.KEYWORD_ONLY) for item in parameters_of(recurrence).values())
        load.__signature__ = Signature([*own, *SHARED])
        MODELS.register(name, check)(load)
        return RECURRENCES.register(name)(recurrence)

    return add


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
