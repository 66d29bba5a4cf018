"""Models of a given number of parameters: the width that has it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from registries.counts import Count, number_of
from registries.model_shape import linear_sizes, shape_of
from registries.registry import UserError

TOLERANCE = 0.02  # of the number that is asked for: how far off the nearest width may be
MAX_WIDTH = 2**16


def of_size(
    count: Callable[[Mapping[str, Any]], int], widths: Callable[[int], dict[str, int]], size: Count
) -> dict[str, int]:
    """The widths whose number of parameters is nearest to `size`.

    Args:
        count: widths -> number of parameters, which grows with them.
        widths: a number from 1 on -> widths by name, which grow with it.

    Raises:
        UserError: no width comes near enough.
    """
    asked = number_of(size)
    least = smallest(lambda number: count(widths(number)) >= asked)
    nearest = min((widths(number) for number in (max(1, least - 1), least)), key=lambda item: abs(count(item) - asked))
    reached = count(nearest)
    if abs(reached - asked) > TOLERANCE * asked:
        named = ", ".join(f"{name} {width}" for name, width in nearest.items())
        raise UserError(
            f"model.parameters={size}: no width gives {asked:,} parameters; the nearest is {reached:,} ({named}). Ask "
            "for that many, or for another vocabulary or number of layers"
        )
    return nearest


def smallest(is_enough: Callable[[int], bool]) -> int:
    """The smallest number from 1 on for which this holds, as it does for all larger ones; at most `MAX_WIDTH`."""
    return bisect_left(range(1, MAX_WIDTH), True, key=is_enough) + 1


def in_proportion(arguments: Mapping[str, Any], names: tuple[str, ...]) -> Callable[[int], dict[str, int]]:
    """Widths in the proportions that they have in `arguments`; the number is the first one's."""
    first = arguments[names[0]]
    return lambda number: {name: max(1, round(arguments[name] * number / first)) for name in names}


class Extras(NamedTuple):
    """What a family has beside the matrices of its linear layers, in widths of the model unless it says otherwise.

    Attributes:
        biased: roles whose linear layers have a bias.
        of_layer: of every layer's norms.
        of_model: of the final norm.
        head: whether the output head is a matrix of its own, and not the embedding.
        head_widths: in widths of a head, of every layer's norms of queries and keys.
        head_bias: whether the output head has one.
    """

    biased: tuple[str, ...]
    of_layer: int
    of_model: int
    head: bool = True
    head_widths: int = 0
    head_bias: bool = False


EXTRAS = {
    "llama": Extras((), 2, 1),
    "mistral": Extras((), 2, 1),
    "qwen2": Extras(("attention.query", "attention.key", "attention.value"), 2, 1),
    "qwen3": Extras((), 2, 1, head_widths=2),
    "gemma3_text": Extras((), 4, 1, head=False, head_widths=2),
    "phi": Extras(("attention", "mlp"), 2, 2, head_bias=True),
    "gpt2": Extras(("attention", "mlp"), 4, 2, head=False),
    "gpt_neox": Extras(("attention", "mlp"), 4, 2),
}


def parameter_count(config: Mapping[str, Any]) -> int:
    """The number of parameters of a transformer that starts from random weights with this config."""
    shape = shape_of(config)
    extras, hidden = EXTRAS[shape.family], shape.hidden_size
    layer = extras.of_layer * hidden + extras.head_widths * shape.head_width
    for role, (inputs, outputs) in linear_sizes(shape).items():
        layer += inputs * outputs + (outputs if role.startswith(extras.biased) else 0)
    positions = shape.max_positions * hidden if shape.family == "gpt2" else 0
    vocabulary = shape.vocab_size * (hidden * (1 + extras.head) + extras.head_bias)
    return shape.num_layers * layer + extras.of_model * hidden + vocabulary + positions
