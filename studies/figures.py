"""Figures of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def plot_losses(curves: Mapping[str, Sequence[tuple[int, float]]], levels: Mapping[str, float], file: Path) -> None:
    """Loss against step, one panel per kind of loss, with horizontal lines for the validation scores to compare with.

    Args:
        curves: name -> (step, value) points; `.../transfer/...` is an error of outputs and gets its own panel.
        levels: name -> validation loss, in nats per token.
        file: PNG to write.
    """
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    transfer = {name: points for name, points in curves.items() if "/transfer/" in name and points}
    tokens = {name: points for name, points in curves.items() if "/transfer/" not in name and points}
    panels = [panel for panel in (("relative output error", transfer), ("nats per token", tokens)) if panel[1]]
    panels = panels or [("nats per token", {})]
    figure = Figure(figsize=(6 * len(panels), 4), layout="constrained")
    for axes, (unit, named) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, points in named.items():
            axes.plot(*zip(*points, strict=True), marker="o", markersize=2, linewidth=1, label=name)
        if unit == "nats per token":
            for index, (name, value) in enumerate(levels.items()):
                axes.axhline(value, color=f"C{index + 4}", linestyle="--", linewidth=1, label=name)
        else:
            axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.legend()
    figure.savefig(file, dpi=120)
