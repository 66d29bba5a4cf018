"""The cells of a sweep's table, wherever it is shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

NO_INTERVAL = "none: one document"


def shown_columns(lines: Sequence[Mapping[str, Any]], baselines: int) -> list[str]:
    """The columns of a sweep's table, without margins and interval ends, which stand in the cells of others.

    Bits per byte are left to the sweep's file where there is only one untouched model to compare with.
    """
    columns = dict.fromkeys(column for line in lines for column in line)
    left_out = ("eval s", "bits/byte") if baselines == 1 else ("eval s",)
    return [column for column in columns if not column.endswith((" +-", ", low", ", high")) and column not in left_out]


def cell(line: Mapping[str, Any], title: str) -> str:
    """A value of a sweep's table, with its confidence interval where it has one."""
    value = line.get(title, "")
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    text = _four_digits(value)
    if f"{title} +-" in line:
        text += f" +- {line[title + ' +-']:.2g}"
    if f"{title}, low" in line:
        low, high = line[f"{title}, low"], line[f"{title}, high"]
        text += f" ({low:.4f} - {high:.4f})" if math.isfinite(high) else f" ({NO_INTERVAL})"
    return text


def _four_digits(value: float) -> str:
    if abs(value) >= 1000 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 100 else f"{value:.4f}"
