"""Large numbers as a user writes them: 2.74M."""

from __future__ import annotations

import re
from typing import Annotated

from annotated_types import Ge, Predicate

UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


def is_count(text: str) -> bool:
    """Whether a text is a number with or without a unit, such as `2.74M`."""
    return re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?[KMB]?", text) is not None


Count = Annotated[int, Ge(1)] | Annotated[str, Predicate(is_count)]


def number_of(count: Count) -> int:
    """The number that a count stands for."""
    text = str(count)
    unit = text[-1] if text[-1] in UNITS else ""
    return round(float(text.removesuffix(unit)) * UNITS[unit])
