"""How the best learning rate of a sweep follows the batch size, or the size of the model."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from studies.report.sweep_table import LEARNING_RATE, Run, compared_by, flat_config, varied_keys
from studies.run.ratios import CONFIDENCE
from studies.run.results import DONE

# Key that varies beside the rate -> metric of its value, or None where the key says it; what the value is called.
AXES = {"dataset.batch_size": (None, "the batch size"), "model.parameters": ("params/total", "the parameters")}


class RateRule(NamedTuple):
    """The slope of a straight line through log best rate against log size, with its 95 % interval.

    Attributes:
        count: best rates that the line was drawn through.
        at_the_edge: how many others were the lowest or the highest of those tried, and so are not known.
    """

    slope: float
    low: float
    high: float
    count: int
    at_the_edge: int


def best_rate(losses: Mapping[float, float]) -> float | None:
    """The vertex of the parabola through loss against log rate, at the best of the rates and its two neighbours.

    None where the best one has no neighbour on one side, as the best rate may lie beyond it, or none is better.
    """
    rates = sorted(losses)
    best = min(range(len(rates)), key=lambda index: losses[rates[index]])
    if not 0 < best < len(rates) - 1:
        return None
    (x0, x1, x2), (y0, y1, y2) = ([f(rates[best + step]) for step in (-1, 0, 1)] for f in (math.log, losses.get))
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = (right - left) / (x2 - x0)
    if curvature <= 0:
        return None
    return math.exp((x0 + x1) / 2 - left / (2 * curvature))


def rate_rule(points: Sequence[tuple[float, float | None]]) -> RateRule | None:
    """The rule that (size, best rate) points follow; None where fewer than three are known, or all of one size."""
    from scipy.stats import linregress, t

    known = [(math.log(size), math.log(rate)) for size, rate in points if rate is not None]
    if len(known) < 3 or len({size for size, _ in known}) < 2:
        return None
    line = linregress(*zip(*known, strict=True))
    margin = t.ppf((1 + CONFIDENCE) / 2, len(known) - 2) * line.stderr
    return RateRule(line.slope, line.slope - margin, line.slope + margin, len(known), len(points) - len(known))


def rate_notes(runs: Sequence[Run]) -> list[str]:
    """A line for each rule that a sweep over the learning rate and one of `AXES` shows."""
    finished = [run for run in runs if run[1]["status"] in DONE]
    configs = [flat_config(result["config"]) for _, result in finished]
    varied, notes = varied_keys(configs), []
    for axis in AXES:
        if {axis, LEARNING_RATE} <= {*varied}:
            rest = [key for key in varied if key not in (axis, LEARNING_RATE, "seed")]
            notes += _notes_of(axis, rest, finished, configs)
    return notes


def _notes_of(axis: str, rest: Sequence[str], runs: Sequence[Run], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    metric, (source, noun) = compared_by(runs), AXES[axis]
    trials = defaultdict(lambda: defaultdict(dict))
    for (_, result), config in zip(runs, configs, strict=True):
        size = config[axis] if source is None else result["metrics"][source]
        others = tuple(f"{key.rpartition('.')[2]}={config.get(key)}" for key in rest)
        trials[others][size, config["seed"]][config[LEARNING_RATE]] = result["metrics"].get(metric, math.inf)
    notes = []
    for others, by_trial in trials.items():
        rule = rate_rule([(size, best_rate(losses)) for (size, _), losses in by_trial.items()])
        label = f" ({', '.join(others)})" if others else ""
        if rule is None:
            told = "is not known: too few lie between two rates that were tried, so widen optimizer.lr"
        else:
            told = (
                f"goes with the power {rule.slope:.2f} ({rule.low:.2f} to {rule.high:.2f}), by {rule.count} best rates"
            )
            if rule.at_the_edge:
                told += f"; {rule.at_the_edge} more lie at the edge of the rates that were tried"
        notes.append(f"how the best rate follows {noun}{label}: it {told}")
    return notes
