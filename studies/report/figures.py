"""Figures of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

# Stages whose loss is no loss of tokens -> what it is.
UNITS = {
    "transfer": "relative output error",
    "block_wise": "relative error of states",
    "adapter": "adapter's objective",
}
NATS = "nats per token"


def unit_of(curve: str) -> str:
    """The unit of the loss that a curve is of; the stage that is named in `train/<stage>/loss` tells it."""
    return UNITS.get(curve.split("/")[1], NATS)


def plot_losses(curves: Mapping[str, Sequence[tuple[int, float]]], levels: Mapping[str, float], file: Path) -> None:
    """Loss against step, one panel per kind of loss, with horizontal lines for the validation scores to compare with.

    Args:
        curves: name -> (step, value) points; the stage that is named in `train/<stage>/loss` tells the kind.
        levels: name -> validation loss, in nats per token.
        file: PNG to write.
    """
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    panels: dict[str, dict[str, Sequence[tuple[int, float]]]] = {}
    for name, points in curves.items():
        if points:
            panels.setdefault(unit_of(name), {})[name] = points
    panels = panels or {NATS: {}}
    figure = Figure(figsize=(6 * len(panels), 4), layout="constrained")
    for axes, (unit, named) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, points in named.items():
            axes.plot(*zip(*points, strict=True), marker="o", markersize=2, linewidth=1, label=name)
        if unit == NATS:
            for index, (name, value) in enumerate(levels.items()):
                axes.axhline(value, color=f"C{index + 4}", linestyle="--", linewidth=1, label=name)
        else:
            axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.legend()
    figure.savefig(file, dpi=120)


def plot_scatter(
    points: Mapping[str, Sequence[tuple[float, float, str]]], x_label: str, y_label: str, file: Path
) -> None:
    """One panel for each name, with its labelled (x, y) points; x is logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(points), 4), layout="constrained")
    for axes, (name, labelled) in zip(figure.subplots(1, len(points), squeeze=False)[0], points.items(), strict=True):
        axes.scatter([x for x, _, _ in labelled], [y for _, y, _ in labelled])
        for x, y, text in labelled:
            axes.annotate(text, (x, y), textcoords="offset points", xytext=(4, 3), fontsize=8)
        axes.set_xscale("log")
        axes.set_title(name)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
    figure.savefig(file, dpi=120)


def plot_heat_map(cells: Mapping[tuple[str, int], float], label: str, file: Path, logarithmic: bool = False) -> None:
    """Values by role and layer.

    Args:
        cells: (role, layer) -> value; what is missing stays white.
        label: what the values are.
        file: PNG to write.
    """
    import numpy
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    roles, layers = list(dict.fromkeys(role for role, _ in cells)), range(max(layer for _, layer in cells) + 1)
    values = numpy.array([[cells.get((role, layer), numpy.nan) for layer in layers] for role in roles])
    figure = Figure(figsize=(max(5, 0.3 * len(layers) + 2), 0.4 * len(roles) + 1.2), layout="constrained")
    axes = figure.subplots()
    positive = logarithmic and (values[~numpy.isnan(values)] > 0).all()
    image = axes.imshow(values, aspect="auto", norm=LogNorm() if positive else None)
    axes.set_yticks(range(len(roles)), roles)
    axes.set_xlabel("layer")
    figure.colorbar(image, label=label)
    figure.savefig(file, dpi=120)
