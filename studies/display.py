"""What a run prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

console = Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line of progress."""
    console.print(text, markup=False)


def show_parameters(stage: str, parameters: Mapping[str, Any]) -> None:
    """The table of what a stage trains."""
    table = Table(title=f"trained in stage {stage}", title_justify="left")
    table.add_column("parameter")
    table.add_column("shape")
    table.add_column("numbers", justify="right")
    for name, parameter in parameters.items():
        table.add_row(name, " x ".join(map(str, parameter.shape)), f"{parameter.numel():,}")
    table.add_row("all", "", f"{sum(parameter.numel() for parameter in parameters.values()):,}")
    console.print(table)


def show_scores(metrics: Mapping[str, float]) -> None:
    """The table of scores: a row per state of the model."""
    rows = {
        "untouched": "baseline/",
        "after surgery": "swap/",
        "after transfer": "transfer/",
        "at the end": "val/",
        "untouched, test": "baseline/test/",
        "at the end, test": "test/",
    }
    table = Table(title="scores", title_justify="left")
    table.add_column("model")
    columns = {"loss": "loss", "ppl": "perplexity", "ppl_ratio": "ratio", "bpb": "bits/byte", "accuracy": "accuracy"}
    for title in columns.values():
        table.add_column(title, justify="right")
    for label, prefix in rows.items():
        if f"{prefix}loss" in metrics:
            values = [metrics.get(f"{prefix}{name}") for name in columns]
            table.add_row(label, *["" if value is None else f"{value:.4f}" for value in values])
    console.print(table)
