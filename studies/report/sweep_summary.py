"""The summary of a sweep: tables, files and figures. It is written while jobs end, and shown when all have."""

from __future__ import annotations

import csv
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from filelock import FileLock, Timeout

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
from studies.run.jobs import SUMMARY, failures, halvings, job_folders, sweep_runs
from studies.run.results import readable
from studies.run.sweep_account import SweepAccount
from studies.run.trackers import build_tracker

GROW_SECONDS = 10.0  # between two summaries while jobs end: each reads the results of all runs


@dataclass(frozen=True)
class SweepSummary:
    """What a sweep has shown so far.

    Attributes:
        folder: of the sweep.
        runs: of its jobs.
        settings: of these runs, best first.
        untouched: label -> validation loss of the untouched models.
        tables: title -> lines.
        failed: jobs that failed.
        notes: what the tables can tell, one line each.
    """

    folder: Path
    runs: Sequence[Run]
    settings: Sequence[Setting]
    untouched: Mapping[str, float]
    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    failed: Sequence[Mapping[str, Any]]
    notes: Sequence[str]

    @classmethod
    def of(cls, folder: Path) -> SweepSummary:
        """The summary of the sweep in a folder."""
        runs = list(readable(sweep_runs(folder)))
        settings = group(runs)
        table = summary_table(settings)
        tables = {"the sweep, by validation loss": table}
        by_rate = by_everything_but(LEARNING_RATE, table).values()
        if any(len(lines) > 1 for lines in by_rate):
            tables["each at its best learning rate"] = [lines[0] for lines in by_rate]
        notes = [*halvings(folder), *comparison_notes(settings), *rate_notes(runs)]
        return cls(folder, runs, settings, untouched_losses(runs), tables, failures(folder), notes)

    def jobs(self) -> dict[str, int]:
        """Status -> number of jobs; `planned` where it is known how many there are in all."""
        statuses = {path: result["status"] for path, result in self.runs}
        of_jobs = {failure["job"]: "failed" for failure in self.failed}  # some failed before they had a run
        of_jobs |= {number: statuses[path] for number, path in job_folders(self.folder).items() if path in statuses}
        counts = Counter("finished" if status == "skipped" else status for status in of_jobs.values())
        account = SweepAccount.read(self.folder)
        planned = {} if account is None or account.jobs is None else {"planned": account.jobs}
        return {**planned, **dict(sorted(counts.items()))}

    def best(self) -> dict[str, float]:
        """The scores of the best setting, means over its seeds."""
        best = next((setting for setting in self.settings if setting.runs), None)
        names = {} if best is None else dict.fromkeys(name for _, result in best.runs for name in result["metrics"])
        scores = (name for name in names if name.startswith(("val/", "test/")) and not name.endswith(("_low", "_high")))
        return {name: best.mean(name) for name in scores}

    def write(self) -> None:
        """Write `summary.csv` (a line for each run) and `summary.json` (the tables, and what failed)."""
        _write_csv(self.runs, self.folder / "summary.csv")
        content = {"untouched": self.untouched, **self.tables, "notes": self.notes, "failed": self.failed}
        content |= {"jobs": self.jobs(), "best": self.best()}
        write_text(self.folder / SUMMARY, json.dumps(content, indent=2))

    def draw(self) -> None:
        """Write the figures."""
        from studies.report.sweep_figures import plot_learning, plot_pareto

        finished = [setting for setting in self.settings if setting.runs]
        if len(finished) < 2:
            return
        for metric, label in (("params/trainable", "trainable parameters"), ("time/train_s", "seconds of training")):
            points = {setting.label(): _point(setting, metric) for setting in finished if setting.mean("val/loss")}
            if len({cost for cost, *_ in points.values()}) > 1:
                plot_pareto(points, label, self.folder / f"loss_by_{metric.rpartition('/')[2]}.png")
        curves = {setting.label(): loss_by_tokens(setting) for setting in finished}
        plot_learning({label: points for label, points in curves.items() if points}, self.folder / "loss_by_tokens.png")

    def show(self) -> None:
        """Print the tables, and what failed."""
        from studies.report.display import show_failures, show_notes, show_settings

        for title, lines in self.tables.items():
            if lines:
                show_settings(title, lines, self.untouched)
        show_notes(self.notes)
        show_failures(self.failed)


def summarise(folder: Path, cfg: Mapping[str, Any]) -> None:
    """Print and write the summary of the sweep in this folder, and hand it to the tracking store of `cfg`."""
    from studies.progress import show_folder

    summary = SweepSummary.of(folder)
    summary.write()
    summary.draw()
    summary.show()
    _track(folder, cfg, at_end=True)
    show_folder(folder)


def grow(folder: Path, cfg: Mapping[str, Any]) -> None:
    """Write the summary of a sweep at work, unless that was done a moment ago, and hand it on without waiting."""
    file = folder / SUMMARY
    if file.is_file() and time.time() - file.stat().st_mtime < GROW_SECONDS:
        return
    try:
        with FileLock(folder / ".summary.lock", timeout=0):
            SweepSummary.of(folder).write()
    except Timeout:  # another job's process is at it
        return
    _track(folder, cfg, at_end=False)


def _track(folder: Path, cfg: Mapping[str, Any], at_end: bool) -> None:
    if is_chosen(cfg["tracking"]) and is_first():
        tracker = build_tracker(TrackingSettings.read(cfg["tracking"]))
        tracker.log_sweep(folder, Path(cfg["output_dir"]), at_end)


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
