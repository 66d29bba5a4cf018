"""Fill the tables of a results page from finished runs.

python -m studies.tools.results_page docs/results/attention_replacement.md outputs [more output folders]

A line `<!-- table: depth -->` of the page is followed by the tables of that experiment, one for each model, dataset and
size that were run; everything from there to the next `<!-- end -->` is written anew. What else the page says is left.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from registries.registry import UserError
from studies.config.groups import OPERATIONS
from studies.report.cells import cell, shown_columns
from studies.report.compared_runs import option_of
from studies.report.comparison_notes import comparison_notes
from studies.report.rate_rule import rate_notes
from studies.report.selection import recorded_results
from studies.report.sweep_table import flat_config, group, newest, summary_table, varied_keys, words
from studies.run.files import write_text

MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
COLUMNS = {
    "after surgery": "swap/ppl_ratio",
    "after transfer": "transfer/ppl_ratio",
    "at the end": "val/ppl_ratio",
    "over the control": "val/ppl_ratio_control",
    "over the control, test": "test/ppl_ratio_control",
    "over random standard": "val/ppl_ratio_standard",
    "bias range": "replacement/bias_range",
}
COSTS = {"tokens/s": "throughput/eval_tokens_per_s", "MB": "memory/peak_mb", "train s": "time/train_s"}
COSTLY = ("length", "throughput")  # experiments that are about cost


def fill(page: str, results: Sequence[Mapping[str, Any]]) -> str:
    """The page with its tables made from these results (contents of `result.json`).

    Raises:
        UserError: the page asks for an experiment that was not run.
    """
    by_experiment = defaultdict(list)
    for result in results:
        if result["status"] == "finished":
            by_experiment[result["config"]["experiment"]["name"]].append(result)

    def tables(match: re.Match) -> str:
        name = match[2]
        if name not in by_experiment:
            raise UserError(f"there is no finished run of experiment {name!r}: python train.py experiment={name}")
        return match[1] + "\n".join(_tables(name, by_experiment[name])) + "\n" + match[3]

    return MARK.sub(tables, page)


def _tables(name: str, results: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """A table for each model, dataset and size, with the command above it."""
    groups = defaultdict(list)
    for result in results:
        config = result["config"]
        models = tuple(sorted({config["model"]["name"], option_of(config, "source")}))  # in either direction
        if _is_from_scratch(config):
            models = ()  # which are compared with each other
        groups[models, config["dataset"]["name"], config["size"]["name"]].append(result)
    for (models, dataset, size), members in sorted(groups.items()):
        config = members[-1]["config"]
        source = f" model@source={option_of(config, 'source')}" if option_of(config, "source") != "none" else ""
        local = " dataset.path=<folder>" if config["dataset"].get("path") else ""
        model = config["model"]["name"]
        if not models:
            yield f"`python train.py experiment={name} size={size} dataset={dataset}{local}`\n\n{_settings(members)}"
            continue
        command = f"python train.py experiment={name} size={size} model={model}{source} dataset={dataset}{local}"
        if any(option_of(config, part) != "none" for part in OPERATIONS if part != "replacement"):
            yield f"`{command}`\n\n{_settings(members)}"
        else:
            yield f"`{command}`\n\n{_table(members, COLUMNS | COSTS if name in COSTLY else COLUMNS)}"


def _is_from_scratch(config: Mapping[str, Any]) -> bool:
    return not config["model"].get("freeze", True)


def _settings(results: Sequence[Mapping[str, Any]]) -> str:
    """The table of a sweep: a line for each setting, seeds together, best first; and what it can tell."""
    runs = newest((Path(result["folder"]), result) for result in results)
    settings = group(runs)
    lines = summary_table(settings)
    untouched = {f"untouched: {result['baseline']['loss']:.4f}" for result in results}
    columns = shown_columns(lines, len(untouched))
    rows = [[column.removesuffix(".name") for column in columns], ["---"] * len(columns)]
    rows += [[cell(line, column) for column in columns] for line in lines]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    if not _is_from_scratch(results[0]["config"]):
        return f"{', '.join(sorted(untouched))} nats per token\n\n{table}"
    notes = [*comparison_notes(settings), *rate_notes(runs)]
    return table + "".join(f"\n* {note}" for note in notes) + ("\n" if notes else "")


def _table(results: list[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    configs = [flat_config(result["config"]) for result in results]
    varied = varied_keys(configs) or ["replacement.depth"]
    metrics = {metric: None for result in results for metric in result["metrics"]}
    groups = {f"loss, {words(metric)}": metric for metric in metrics if metric.startswith("val/loss_")}
    shown = {title: metric for title, metric in {**columns, **groups}.items() if metric in metrics}
    header, rows = [*(key.rpartition(".")[2] for key in varied), *shown], {}
    for result, config in zip(results, configs, strict=True):
        stages = " + ".join(result["config"]["recovery"]) or "transfer + next_token"
        values = [stages if key == "recovery" else str(config.get(key, "")) for key in varied]
        # The newest comes first: of runs of the same config it is the one that is shown.
        rows.setdefault(tuple(values), [*values, *(_value(result["metrics"], metric) for metric in shown.values())])
    lines = [header, ["---"] * len(header), *sorted(rows.values(), key=_order)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _order(cells: Sequence[str]) -> list[Any]:
    """Numbers by size, everything else by its letters."""
    return [(0, float(cell), "") if re.fullmatch(r"-?[\d.]+(e-?\d+)?", cell) else (1, 0.0, cell) for cell in cells]


def _value(metrics: Mapping[str, float], name: str) -> str:
    value = metrics.get(name)
    if value is None:
        return ""
    if f"{name}_low" in metrics:
        return f"{value:.4f} ({metrics[f'{name}_low']:.4f} - {metrics[f'{name}_high']:.4f})"
    return f"{value:.4f}" if value < 100 else f"{value:,.0f}"


def main(page: str, output_dir: str, *more: str) -> None:
    """The command line."""
    file = Path(page)
    results = [result for folder in (output_dir, *more) for result in recorded_results(Path(folder))]
    write_text(file, fill(file.read_text(), results))


if __name__ == "__main__":
    from studies.tools.command import run_tool

    run_tool(main, __doc__)
