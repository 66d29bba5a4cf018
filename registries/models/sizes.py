"""Models of a given number of parameters: the width that has it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from annotated_types import Ge, Predicate

from registries.registry import UserError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
TOLERANCE = 0.02  # of the number that is asked for: how far off the nearest width may be
MAX_WIDTH = 2**16


def is_count(text: str) -> bool:
    """Whether a text is a number with or without a unit, such as `2.74M`."""
    return re.fullmatch(r"\d{1,12}(\.\d{1,6})?[KMB]?", text) is not None


ParameterCount = Annotated[int, Ge(1)] | Annotated[str, Predicate(is_count)]


def number_of(count: ParameterCount) -> int:
    """The number that a count stands for."""
    text = str(count)
    unit = text[-1] if text[-1] in UNITS else ""
    return round(float(text.removesuffix(unit)) * UNITS[unit])


def of_size(
    count: Callable[[Mapping[str, Any]], int],
    arguments: Mapping[str, Any],
    widths: Sequence[str],
    size: ParameterCount,
    multiple: int = 1,
) -> dict[str, Any]:
    """The arguments with other widths, in the same proportions, that give the number of parameters nearest to `size`.

    Args:
        count: arguments -> number of parameters, which grows with the widths.
        widths: names of the arguments that are widths; the first is the one that is solved for.
        multiple: what the first width is a multiple of.

    Raises:
        UserError: no width comes near enough.
    """
    asked, first = number_of(size), arguments[widths[0]]

    def scaled(steps: int) -> dict[str, Any]:
        width = steps * multiple
        return {**arguments, **{name: max(1, round(arguments[name] * width / first)) for name in widths}}

    low, high = 1, MAX_WIDTH // multiple
    while low < high:  # the smallest width that has at least so many
        middle = (low + high) // 2
        low, high = (middle + 1, high) if count(scaled(middle)) < asked else (low, middle)
    nearest = min((scaled(steps) for steps in {max(1, low - 1), low}), key=lambda item: abs(count(item) - asked))
    reached = count(nearest)
    if abs(reached - asked) > TOLERANCE * asked:
        widths_reached = ", ".join(f"model.{name}={nearest[name]}" for name in widths)
        raise UserError(
            f"model.parameters={size}: no width gives {asked:,} parameters; the nearest is {reached:,} "
            f"({widths_reached}). Ask for that many, or for another vocabulary or number of layers"
        )
    return nearest
