"""The effect of each axis of a sweep, from pairs of runs that differ in nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from studies.report.spread import Spread
from studies.report.sweep_table import Setting, spread_of
from studies.run.ratios import CONFIDENCE


class Effect(NamedTuple):
    """What a value of a key does to a metric, beside the key's first value.

    Attributes:
        key: that was varied.
        value: of the key.
        mean: of the metric over all runs with this value.
        reference: the key's first value.
        pairs: of runs, one with each of the two values, that are alike in all other keys and in their seed.
        difference: mean over these pairs; None for the first value, and where there are no pairs.
        margin: half the 95 % interval of this mean: by the spread over seeds where it was measured, else by that of the
            pairs, which need to be two; None where neither is known.
    """

    key: str
    value: str
    mean: float
    reference: str
    pairs: int
    difference: float | None
    margin: float | None


def axis_effects(settings: Sequence[Setting], metric: str) -> list[Effect]:
    """The effects of all keys in which the settings differ."""
    finished = [setting for setting in settings if setting.metric(metric)]
    keys, spread = finished[0].values if finished else {}, spread_of(finished, metric)
    return [effect for key in keys for effect in _effects_of(key, finished, metric, spread)]


def _effects_of(key: str, settings: Sequence[Setting], metric: str, spread: Spread | None) -> Iterable[Effect]:
    values = in_order(setting.values[key] for setting in settings)
    by_rest = {value: _by_rest(key, value, settings, metric) for value in values}
    reference = values[0]
    for value in values if len(values) > 1 else ():
        common = by_rest[value].keys() & by_rest[reference].keys() if value != reference else ()
        differences = [by_rest[value][rest] - by_rest[reference][rest] for rest in sorted(common)]
        yield Effect(
            key,
            value,
            fmean(by_rest[value].values()),
            reference,
            len(differences),
            fmean(differences) if differences else None,
            _margin(differences, spread),
        )


def _by_rest(key: str, value: str, settings: Iterable[Setting], metric: str) -> Mapping[tuple, float]:
    """All other keys, with the seed -> metric, of the runs with this value of the key."""
    return {
        (*(text for name, text in setting.values.items() if name != key), result["config"]["seed"]): result["metrics"][
            metric
        ]
        for setting in settings
        if setting.values[key] == value
        for _, result in setting.runs
        if metric in result["metrics"]
    }


def _margin(differences: Sequence[float], spread: Spread | None) -> float | None:
    from scipy.stats import t

    if differences and spread is not None:
        return spread.least_difference(len(differences), len(differences))
    if len(differences) < 2:
        return None
    deviation = stdev(differences) / math.sqrt(len(differences))
    return t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1) * deviation


def in_order(values: Iterable[str]) -> list[str]:
    """Different texts: numbers by size, before everything else by its letters."""
    return sorted({*values}, key=lambda text: (0, float(text), "") if is_number(text) else (1, 0.0, text))


def is_number(text: str) -> bool:
    """Whether a text is a number as configs have it."""
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE) is not None
