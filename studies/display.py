"""What a run prints."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
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


def show_scores(result: Mapping[str, Any]) -> None:
    """The tables of scores (a row per state of the model) and of ratios to what it is compared with."""
    metrics, stages = result["metrics"], list(result.get("stages", {}))
    rows = {
        "untouched": "baseline/",
        "after surgery": "swap/",
        **{f"after {stage}": f"{stage}/" for stage in stages[:-1]},
        "at the end": "val/",
        "untouched, test": "baseline/test/",
        "at the end, test": "test/",
    }
    columns = {"loss": "loss", "ppl": "perplexity", "ppl_ratio": "ratio", "bpb": "bits/byte", "accuracy": "accuracy"}
    table = _table("scores", "model", columns.values())
    for label, prefix in rows.items():
        if f"{prefix}loss" in metrics:
            table.add_row(label, *(_number(metrics.get(f"{prefix}{name}")) for name in columns))
    console.print(table)
    table = _table("perplexity at the end over that of", "", ("validation", "95 %", "test", "95 %"))
    for label, name in RATIOS.items():
        if f"val/{name}_low" in metrics:
            table.add_row(
                label, *itertools.chain(*(_interval(metrics, f"{split}/{name}") for split in ("val", "test")))
            )
    console.print(table)


RATIOS = {
    "the untouched model": "ppl_ratio",
    "the unmodified model, same training": "ppl_ratio_control",
    "standard attention from random weights": "ppl_ratio_standard",
}


def _interval(metrics: Mapping[str, float], name: str) -> tuple[str, str]:
    return _number(metrics[name]), f"{_number(metrics[name + '_low'])} - {_number(metrics[name + '_high'])}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _table(title: str, first: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table
