"""Figures of a sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.report.effects import in_order, is_number
from studies.report.figures import unit_of

LONGEST_LEGEND = 12  # lines; more would cover the figure
MOST_LABELS = 4  # at points; more would cover each other
WIDE = 10.0  # ratio of an axis' largest to its smallest value from which it is logarithmic


def plot_pareto(
    points: Mapping[str, tuple[float, float, float]],
    label: str,
    file: Path,
    quality: str = "validation loss (nats per token)",
) -> None:
    """Quality against what it costs; the line joins what nothing else beats in both.

    Args:
        points: name -> (cost, loss, half its confidence interval).
        label: what the cost is.
        file: PNG to write.
        quality: what the loss is.
    """
    figure, axes = _figure()
    for index, (name, (cost, loss, margin)) in enumerate(points.items()):
        axes.errorbar([cost], [loss], [margin], fmt="o", color=f"C{index % 10}", capsize=3, label=name)
        if len(points) <= MOST_LABELS:
            axes.annotate(name, (cost, loss), textcoords="offset points", xytext=(6, 4), fontsize=8)
    front, best = [], float("inf")
    for cost, loss, _ in sorted(points.values()):
        if loss < best:
            front.append((cost, loss))
            best = loss
    axes.plot(*zip(*front, strict=True), color="gray", linewidth=1, zorder=0)
    _scale(axes, [cost for cost, *_ in points.values()])
    axes.set_xlabel(label)
    axes.set_ylabel(quality)
    axes.margins(0.15)
    if len(points) > MOST_LABELS:
        _legend(axes, len(points))
    figure.savefig(file, dpi=120)


def plot_learning(curves: Mapping[str, Sequence[tuple[int, float]]], file: Path) -> None:
    """Validation loss against the tokens that were seen; nothing is written where there is no curve.

    Args:
        curves: name -> (tokens, nats per token) points.
        file: PNG to write.
    """
    if not curves:
        return
    figure, axes = _figure()
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1, label=name)
    axes.set_xlabel("tokens of training")
    axes.set_ylabel("validation loss (nats per token)")
    _legend(axes, len(curves))
    figure.savefig(file, dpi=120)


def plot_axis(lines: Mapping[str, Sequence[tuple[str, float, float]]], key: str, quality: str, file: Path) -> None:
    """A metric against a key that was varied.

    Args:
        lines: what the other keys are -> (value of the key, metric, half its confidence interval).
        key: its name.
        quality: what the metric is.
        file: PNG to write.
    """
    figure, axes = _figure()
    values = in_order(value for points in lines.values() for value, *_ in points)
    numbers = all(map(is_number, values))
    for index, (name, points) in enumerate(lines.items()):
        points = sorted(points, key=lambda point: values.index(point[0]))
        places = [float(value) if numbers else values.index(value) for value, *_ in points]
        style = {"color": f"C{index % 10}", "marker": "o", "markersize": 4, "capsize": 3, "linewidth": 1}
        style["linestyle"] = "-" if numbers else ":"  # between names there is nothing
        losses, margins = [loss for _, loss, _ in points], [margin for *_, margin in points]
        axes.errorbar(places, losses, margins, label=name, **style)
    if numbers:
        _scale(axes, [float(value) for value in values])
    else:
        axes.set_xticks(range(len(values)), values)
    axes.set_xlabel(key)
    axes.set_ylabel(quality)
    if len(lines) > 1:
        _legend(axes, len(lines))
    figure.savefig(file, dpi=120)


def plot_grid(cells: Mapping[tuple[str, str], float], x_key: str, y_key: str, quality: str, file: Path) -> None:
    """A metric over two keys that were varied.

    Args:
        cells: (value of the one, value of the other) -> metric; what is missing stays white.
        x_key, y_key: their names.
        quality: what the metric is.
        file: PNG to write.
    """
    import numpy

    columns, rows = in_order(x for x, _ in cells), in_order(y for _, y in cells)
    values = numpy.array([[cells.get((x, y), numpy.nan) for x in columns] for y in rows])
    figure, axes = _figure()
    image = axes.imshow(values, aspect="auto", cmap="viridis", origin="lower")
    middle = (numpy.nanmin(values) + numpy.nanmax(values)) / 2
    for (row, column), value in numpy.ndenumerate(values):
        if math.isfinite(value):
            color = "black" if value > middle else "white"
            axes.text(column, row, f"{value:.4g}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel(x_key)
    axes.set_ylabel(y_key)
    figure.colorbar(image, label=quality)
    figure.savefig(file, dpi=120)


def plot_runs(panels: Mapping[str, Sequence[tuple[str, Sequence[tuple[int, float]]]]], file: Path) -> None:
    """The curves of all runs over each other, a panel for each metric, a colour for each setting.

    Args:
        panels: metric -> (setting, points of (step, value)) of each run.
        file: PNG to write.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for runs in panels.values() for name, _ in runs))
    figure = Figure(figsize=(6 * len(panels), 4.5), layout="constrained")
    for axes, (metric, runs) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        named = set()
        for name, points in runs:
            label = None if name in named else name
            named.add(name)
            color = f"C{names.index(name) % 10}"
            axes.plot(*zip(*points, strict=True), linewidth=0.8, color=color, label=label)
        axes.set_xlabel("step of training")
        axes.set_ylabel(f"{metric} ({unit_of(metric)})")
        _legend(axes, len(names))
    figure.savefig(file, dpi=120)


def plot_parallel(settings: Sequence[Mapping[str, str]], losses: Sequence[float], quality: str, file: Path) -> None:
    """Parallel coordinates: a line for each setting through its values of the keys that were varied, to its metric.

    Args:
        settings: key -> value.
        losses: of the settings.
        quality: what they are.
        file: PNG to write.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure, axes = _figure()
    keys = list(settings[0])
    colors = ScalarMappable(Normalize(min(losses), max(losses)), "viridis")
    ticks = {key: in_order(setting[key] for setting in settings) for key in keys}
    span = max(losses) - min(losses) or 1.0
    for setting, loss in zip(settings, losses, strict=True):
        heights = [_height(ticks[key], setting[key]) for key in keys] + [(loss - min(losses)) / span]
        axes.plot(range(len(heights)), heights, color=colors.to_rgba(loss), linewidth=1)
    for place, key in enumerate(keys):
        axes.axvline(place, color="gray", linewidth=0.5)
        for value in ticks[key]:
            height = _height(ticks[key], value)
            axes.annotate(value, (place, height), textcoords="offset points", xytext=(3, 2), fontsize=8)
    axes.set_xticks(range(len(keys) + 1), [*keys, quality])
    axes.set_yticks([])
    axes.margins(x=0.12)
    figure.colorbar(colors, ax=axes, label=quality)
    figure.savefig(file, dpi=120)


def _height(ticks: Sequence[str], value: str) -> float:
    return ticks.index(value) / (len(ticks) - 1) if len(ticks) > 1 else 0.5


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    return figure, figure.subplots()


def _legend(axes: Any, lines: int) -> None:
    if lines <= LONGEST_LEGEND:
        axes.legend(fontsize=8)
    else:
        axes.set_title(f"{lines} settings, named in the table", fontsize=8)


def _scale(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic axis where the values reach far."""
    if min(values) > 0 and max(values) > WIDE * min(values):
        axes.set_xscale("log")
