"""Which cases of a test with parameters run by default: a cover of the full product. `pytest -m ""` runs all cases.

Cases beyond the cover get the marker `full_product`, which the options in pyproject.toml leave out. They are:

* a case that differs from an earlier case of its test only in a model family that takes the same code path;
* with `@pytest.mark.each_value`, every case that is not needed for each value of each parameter to occur (parameters
  that are given together are one, unless the marker names them: `each_value("family", "init")`);
* with `@pytest.mark.pairwise`, every case that is not needed for each pair of values of two parameters to occur;
* a case or a test that is marked `full_product` by hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from itertools import combinations
from typing import Any

import pytest

# Family -> the family that stands for its kind: their layers have the same roles under the same names.
KINDS = {"mistral": "llama", "qwen2": "llama", "qwen3": "llama"}
STRENGTHS = {"each_value": 1, "pairwise": 2}

Values = tuple[tuple[Hashable, Hashable], ...]


def mark_full_product(items: Iterable[pytest.Item]) -> None:
    """Mark the cases beyond the cover of their test."""
    tests: dict[str, list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in tests.values():
        apart, strength = (), None
        for name, number in STRENGTHS.items():
            if marker := cases[0].get_closest_marker(name):
                apart, strength = marker.args, number
        kept = cover([values_of(case, apart) for case in cases], strength)
        for number in {*range(len(cases))} - kept:
            cases[number].add_marker("full_product")


def values_of(case: pytest.Function, apart: Sequence[str] = ()) -> Values:
    """The values of a case, with a family's kind in the place of the family.

    Parameters that are given together, as in `parametrize(("family", "init"), ...)`, are one value, except for those
    whose names stand in `apart`.
    """
    values = []
    for marker in case.iter_markers("parametrize"):
        names = marker.args[0].split(",") if isinstance(marker.args[0], str) else marker.args[0]
        names = [name.strip() for name in names]
        together = tuple(name for name in names if name not in apart)
        values += [(name, _identity(case.callspec.params[name])) for name in names if name in apart]
        if together:
            values.append((together, tuple(_identity(case.callspec.params[name]) for name in together)))
    return tuple(values)


def _identity(value: Any) -> Hashable:
    """What tells a value from others: cases share the objects that they are made of, which may not be hashable."""
    return KINDS.get(value, value) if isinstance(value, str) else id(value)


def cover(cases: Sequence[Values], strength: int | None = None) -> set[int]:
    """The numbers of the cases to keep: the first of equal ones, and of those, a few with every combination of values.

    Args:
        cases: the values of each case.
        strength: how many parameters a combination is of; None keeps every case that no earlier one equals.
    """
    distinct = {values: number for number, values in reversed([*enumerate(cases)])}
    remaining = sorted(distinct.items(), key=lambda item: item[1])
    if strength is None or not remaining or len(remaining[0][0]) <= strength:
        return {number for _, number in remaining}
    missing = {combination for values, _ in remaining for combination in combinations(values, strength)}
    kept, uses = set(), Counter()
    while missing:
        # The most new combinations; of equals, the case whose values were used least, so that all are used about alike.
        values, number = max(
            remaining,
            key=lambda item: (
                len(missing.intersection(combinations(item[0], strength))),
                -sum(uses[value] for value in item[0]),
                -item[1],
            ),
        )
        kept.add(number)
        uses.update(values)
        missing.difference_update(combinations(values, strength))
    return kept
