"""The summary of a sweep: tables, files and figures."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning_modules.config import TrackingSettings, is_chosen
from lightning_modules.processes import is_first
from studies.report.comparison_notes import comparison_notes
from studies.report.rate_rule import rate_notes
from studies.report.sweep_table import (
    LEARNING_RATE,
    Run,
    Setting,
    by_everything_but,
    flat_config,
    group,
    summary_table,
    untouched_losses,
    varied_keys,
)
from studies.run.curves import read_curves
from studies.run.files import write_text
from studies.run.jobs import failures, sweep_runs
from studies.run.results import readable
from studies.run.trackers import build_tracker


def summarise(folder: Path, cfg: Mapping[str, Any]) -> None:
    """Print and write the summary of the sweep in this folder, and hand it to the tracking store of `cfg`."""
    from studies.progress import show_folder
    from studies.report.display import show_failures, show_notes, show_settings
    from studies.report.sweep_figures import plot_learning, plot_pareto

    runs = list(readable(sweep_runs(folder)))
    settings = group(runs)
    finished = [setting for setting in settings if setting.runs]
    table, baselines = summary_table(settings), untouched_losses(runs)
    tables = {"the sweep, by validation loss": table}
    by_rate = by_everything_but(LEARNING_RATE, table).values()
    if any(len(lines) > 1 for lines in by_rate):
        tables["each at its best learning rate"] = [lines[0] for lines in by_rate]
    for title, lines in tables.items():
        if lines:
            show_settings(title, lines, baselines)
    _write_csv(runs, folder / "summary.csv")
    failed, notes = failures(folder), [*comparison_notes(settings), *rate_notes(runs)]
    show_notes(notes)
    content = {"untouched": baselines, **tables, "notes": notes, "failed": failed}
    write_text(folder / "summary.json", json.dumps(content, indent=2))
    if len(finished) > 1:
        for metric, label in (("params/trainable", "trainable parameters"), ("time/train_s", "seconds of training")):
            points = {setting.label(): _point(setting, metric) for setting in finished if setting.mean("val/loss")}
            if len({cost for cost, *_ in points.values()}) > 1:
                plot_pareto(points, label, folder / f"loss_by_{metric.rpartition('/')[2]}.png")
        curves = {setting.label(): loss_by_tokens(setting) for setting in finished}
        plot_learning({label: points for label, points in curves.items() if points}, folder / "loss_by_tokens.png")
    if is_chosen(cfg["tracking"]) and is_first():
        build_tracker(TrackingSettings.read(cfg["tracking"])).log_sweep(folder, Path(cfg["output_dir"]))
    show_failures(failed)
    show_folder(folder)


def loss_by_tokens(setting: Setting) -> list[tuple[int, float]]:
    """(tokens, validation loss) during next-token training, the mean over seeds; empty where it was not measured."""
    by_tokens = defaultdict(list)
    for path, result in setting.runs:
        stages = result.get("stages", {})
        if list(stages) != ["next_token"] or "tokens" not in stages["next_token"]:
            return []
        of_step = stages["next_token"]["tokens"] / max(1, stages["next_token"]["steps"])
        for step, loss in read_curves(path).get("val/loss", []):
            by_tokens[round(step * of_step)].append(loss)
    return [(tokens, fmean(losses)) for tokens, losses in sorted(by_tokens.items())]


def _point(setting: Setting, metric: str) -> tuple[float, float, float]:
    return setting.mean(metric) or 0.0, setting.mean("val/loss"), setting.margin("val/loss") or 0.0


def _write_csv(runs: Iterable[Run], file: Path) -> None:
    runs = list(runs)
    configs = [flat_config(result["config"]) for _, result in runs]
    keys = varied_keys(configs)
    metrics = list(dict.fromkeys(name for _, result in runs for name in result["metrics"]))
    with file.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["run", "status", *keys, *metrics])
        for (path, result), config in zip(runs, configs, strict=True):
            values = [result["metrics"].get(name, "") for name in metrics]
            writer.writerow([path.name, result["status"], *(config.get(key, "") for key in keys), *values])
