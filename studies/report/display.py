"""What a run prints."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from lightning_modules.config import TWO_MODEL_MODULES, is_chosen
from registries.placements.placement import Row
from studies.progress import console
from studies.report.cells import cell, shown_columns
from studies.report.printed_tables import interval_cells, new_table, number_cell

WIDEST = 1000  # characters of a table
LONGEST_WORD = 16  # characters that a table does not break; numbers are shorter
MOST_GROUPS = 3  # of positions, whose losses have columns of their own


def show_failures(failures: Sequence[Mapping[str, Any]]) -> None:
    """The jobs of a sweep that failed: number, overrides, cause, and the file with the traceback."""
    if failures:
        console.print(f"{len(failures)} {'job' if len(failures) == 1 else 'jobs'} of this sweep failed:")
    for failure in failures:
        text = f"  job {failure['job']} ({failure['overrides']}): {failure['cause']}\n    {failure['traceback']}"
        console.print(text, markup=False)


def show_notes(notes: Sequence[str]) -> None:
    """What a table can tell, one line each."""
    for note in notes:
        console.print(note, markup=False)


def show_parameters(stage: str, parameters: Mapping[str, Any]) -> None:
    """The table of what a stage trains; what is alike in several layers is one line."""
    table = new_table(f"trained in stage {stage}", "parameter", ("layers", "shape", "numbers"))
    groups: dict[tuple, list[int]] = defaultdict(list)
    for name, parameter in parameters.items():
        pattern, layer = _without_layer(name)
        groups[pattern, tuple(parameter.shape)] += layer
    for (pattern, shape), layers in groups.items():
        count = math.prod(shape) * max(1, len(layers))
        table.add_row(pattern, ranges(layers), " x ".join(map(str, shape)), f"{count:,}")
    table.add_row("all", "", "", f"{sum(parameter.numel() for parameter in parameters.values()):,}")
    console.print(table)


def show_placement(name: str, rows: Sequence[Row]) -> None:
    """The table of a LoRA placement; what is alike in several layers is one line."""
    table = new_table(f"placement {name}", "module", ("role", "layers", "rank", "parameters"))
    groups: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        groups[_without_layer(row.module)[0], row.role, row.rank].append(row)
    for (pattern, role, rank), alike in groups.items():
        parameters = sum(row.parameters for row in alike)
        table.add_row(pattern, role, ranges([row.layer for row in alike]), str(rank), f"{parameters:,}")
    table.add_row("all", "", "", "", f"{sum(row.parameters for row in rows):,}")
    console.print(table)


def _without_layer(name: str) -> tuple[str, list[int]]:
    """A parameter's or module's name with a star for its layer, and the layer."""
    parts = name.split(".")
    index = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    if index is None:
        return name, []
    return ".".join([*parts[:index], "*", *parts[index + 1 :]]), [int(parts[index])]


def ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def show_scores(result: Mapping[str, Any]) -> None:
    """The tables of scores (a row per state of the model) and of ratios to what it is compared with.

    With two models, the target by itself stands beside the target that reads what the source makes of the text.
    """
    metrics, stages, config = result["metrics"], list(result.get("stages", {})), result["config"]
    reads = any(is_chosen(config[group]) for group in TWO_MODEL_MODULES if group in config)
    start, end = ("target alone", "through the source") if reads else ("untouched", "at the end")
    rows = {
        start: "baseline/",
        "after surgery": "swap/",
        **{f"after {stage}": f"{stage}/" for stage in stages[:-1]},
        end: "val/",
        f"{start}, test": "baseline/test/",
        f"{end}, test": "test/",
    }
    columns = {"loss": "loss", "ppl": "perplexity", "ppl_ratio": "ratio", "bpb": "bits/byte", "accuracy": "accuracy"}
    table = new_table("scores", "model", columns.values())
    for label, prefix in rows.items():
        if f"{prefix}loss" in metrics:
            table.add_row(label, *(number_cell(metrics.get(f"{prefix}{name}")) for name in columns))
    console.print(table)
    table = new_table(f"perplexity {end} over that of", "", ("validation", "95 %", "test", "95 %"))
    for label, name in RATIO_LABELS.items():
        if f"val/{name}" in metrics and f"test/{name}" in metrics:
            cells = (interval_cells(metrics, f"{split}/{name}") for split in ("val", "test"))
            table.add_row(label, *itertools.chain(*cells))
    console.print(table)


def show_settings(title: str, lines: Sequence[Mapping[str, Any]], baselines: Mapping[str, float]) -> None:
    """A table of a sweep: a line for each untouched model, and one for each setting, best first."""
    columns = shown_columns(lines, len(baselines))
    groups = [column for column in columns if column.startswith("loss, ")]
    if len(groups) > MOST_GROUPS:  # no terminal is so wide; the sweep's files have them
        columns = [column for column in columns if column not in groups]
    table = Table(title=f"{title} (+- 95 % over seeds)", title_justify="left")
    for column in columns:
        heading = column.removesuffix(".name")
        labels = [f"untouched {label}" for label in baselines] if column == columns[0] else []
        texts = [heading, *labels, *(cell(line, column) for line in lines)]
        longest = max(len(word) for text in texts for word in text.split() or [""])
        table.add_column(heading, overflow="fold", min_width=min(longest, LONGEST_WORD))
    for label, loss in baselines.items():
        cells = {**dict.fromkeys(columns, ""), "loss": f"{loss:.4f}", "perplexity": f"{math.exp(loss):.4f}"}
        table.add_row(*(cells | {columns[0]: f"untouched {label}"}).values())
    for line in lines:
        table.add_row(*(cell(line, column) for column in columns))
    # Numbers stay in one piece: rather are lines longer than the terminal is wide.
    needed = Measurement.get(console, console.options.update(max_width=WIDEST), table).minimum
    wide = Console(file=console.file, highlight=False, soft_wrap=True, width=max(console.width, needed))
    wide.print(table)


RATIO_LABELS = {
    "the untouched model": "ppl_ratio",
    "the unmodified model, same training": "ppl_ratio_control",
    "standard attention from random weights": "ppl_ratio_standard",
    "the larger model from scratch, equal operations": "ppl_ratio_scratch",
}
