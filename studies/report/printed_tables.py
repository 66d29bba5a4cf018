"""What all printed tables are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table

from studies.progress import console
from studies.report.cells import NO_INTERVAL


def show_rows(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A plain table."""
    table = new_table(None, titles[0], titles[1:])
    for row in rows:
        table.add_row(*row)
    console.print(table)


def interval_cells(metrics: Mapping[str, float], name: str) -> tuple[str, str]:
    """A value and its confidence interval. One document (or question) has none: it says nothing about others."""
    if f"{name}_low" not in metrics:
        return number_cell(metrics[name]), NO_INTERVAL
    return number_cell(metrics[name]), f"{number_cell(metrics[name + '_low'])} - {number_cell(metrics[name + '_high'])}"


def number_cell(value: float | None) -> str:
    """A number with four decimals; nothing for None."""
    return "" if value is None else f"{value:.4f}"


def new_table(title: str | None, first: str, columns: Iterable[str]) -> Table:
    """An empty table: a first column of labels, and columns of numbers."""
    table = Table(title=title, title_justify="left")
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    return table
