"""How a recurrence becomes a model of the registry.

Embedding, output head, generation, saving and loading are the same for all and stand in `registries.recurrent_lm`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, Signature
from typing import Annotated, Any

from annotated_types import Ge

from registries import MODELS
from registries.counts import Count
from registries.models.recurrence import MODEL_TYPE, RECURRENCES, number_of_parameters
from registries.models.sizes import in_proportion, of_size
from registries.registry import defaults
from registries.registry import parameters as parameters_of

# What the model of every recurrence takes beside the recurrence's own arguments.
SHARED = (
    Parameter("parameters", Parameter.KEYWORD_ONLY, default=None, annotation=Count | None),
    Parameter("num_tokens", Parameter.KEYWORD_ONLY, default=257, annotation=Annotated[int, Ge(2)]),
)


class RecurrentLoader:
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
        def load(num_tokens: int = 257, parameters: Count | None = None, **arguments: Any) -> RecurrentLoader:
            arguments = {**defaults(recurrence), **arguments}
            if parameters is not None:

                def count(widths: Mapping[str, Any]) -> int:
                    return number_of_parameters(recurrence, {**arguments, **widths}, num_tokens)

                arguments |= of_size(count, in_proportion(arguments, recurrence.widths), parameters)
            return RecurrentLoader(name, arguments, num_tokens)

        own = (item.replace(kind=Parameter.KEYWORD_ONLY) for item in parameters_of(recurrence).values())
        load.__signature__ = Signature([*own, *SHARED])
        MODELS.register(name, check)(load)
        return RECURRENCES.register(name)(recurrence)

    return add
