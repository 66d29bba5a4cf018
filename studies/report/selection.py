"""Which runs a report is about."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from registries.registry import UserError
from studies.report.sweep_table import Run, newest
from studies.run.jobs import JOBS, failures, sweep_runs
from studies.run.results import DONE, read_result, readable, runs

PROGRAM = "python train.py"


@dataclass(frozen=True)
class Selection:
    """Runs to report on.

    Attributes:
        name: for the report's file: a date, and what was run.
        title: in words.
        runs: in the order of the jobs of a sweep, or newest first.
        command: that made them; None where several did.
        failed: jobs of the sweep that failed, as `failures` gives them.
        gone: folders that the sweep names and that are no longer there.
    """

    name: str
    title: str
    runs: list[Run]
    command: str | None = None
    failed: list[dict[str, Any]] = field(default_factory=list)
    gone: list[Path] = field(default_factory=list)


def select(
    output_dir: Path, sweep: str | None = None, experiment: str | None = None, paths: Sequence[str] | None = None
) -> Selection:
    """The runs of a sweep's folder, of an experiment, or of folders; without any of these, of the newest sweep.

    Raises:
        UserError: there are no such runs.
    """
    if paths:
        return _of_paths(output_dir, paths)
    if experiment is not None:
        return _of_experiment(output_dir, experiment)
    return _of_sweep(_newest_sweep(output_dir) if sweep is None else _sweep_folder(output_dir, sweep))


def _newest_sweep(output_dir: Path) -> Path:
    """The newest sweep that any job of was started in."""
    sweeps = sorted((output_dir / "sweeps").glob(f"*/{JOBS}"), reverse=True)
    begun = (jobs.parent for jobs in sweeps if any(jobs.iterdir()) or failures(jobs.parent))
    newest_one = next(begun, None)
    if newest_one is None:
        raise UserError(
            f"there is no sweep in {output_dir}: start one (python train.py -m seed=0,1), name runs "
            f"(runs=[{output_dir}/runs/<run>]), or say where the outputs are (output_dir=<folder>)"
        )
    return newest_one


def _sweep_folder(output_dir: Path, sweep: str) -> Path:
    folder = next((path for path in (Path(sweep), output_dir / "sweeps" / sweep) if (path / JOBS).is_dir()), None)
    if folder is None:
        there = sorted(jobs.parent.name for jobs in (output_dir / "sweeps").glob(f"*/{JOBS}"))[-3:]
        known = f" The newest in {output_dir}: {', '.join(there)}" if there else ""
        raise UserError(f"sweep={sweep} is no folder of a sweep (looked from {Path.cwd()}).{known}")
    return folder


def _of_sweep(folder: Path) -> Selection:
    paths, failed = sweep_runs(folder), failures(folder)
    there = [path for path in paths if (path / "result.json").is_file()]
    if not there and not failed:
        gone = (
            f"the runs of {folder} are gone: {paths[0]} was one of them" if paths else f"no job of {folder} was begun"
        )
        raise UserError(f"{gone}; choose another sweep (sweep=<folder>)")
    asked = _asked_for(folder)
    experiment = asked["experiment"]
    label = experiment if experiment != "none" else "sweep"
    return Selection(
        name=f"{folder.name}_{label}",
        title=f"the sweep of {folder.name}" if experiment == "none" else f"experiment {experiment}, {folder.name}",
        runs=[(path, _as_of(result, asked)) for path, result in readable(there)],
        command=shown_command(["-m", *asked["overrides"]]),
        failed=failed,
        gone=[path for path in paths if path not in there],
    )


def _of_experiment(output_dir: Path, experiment: str) -> Selection:
    results = [result for result in recorded_results(output_dir) if result["status"] in DONE]
    chosen = [result for result in results if result["config"]["experiment"]["name"] == experiment]
    if not chosen:
        names = sorted({result["config"]["experiment"]["name"] for result in results} - {"none"})
        known = f"There are runs of: {', '.join(names)}" if names else "There are runs of no experiment"
        raise UserError(f"experiment={experiment}: {output_dir} has no finished run of it. {known}")
    selected = newest((Path(result["folder"]), result) for result in chosen)
    return Selection(f"{_date(selected)}_{experiment}", f"experiment {experiment}", selected)


def _of_paths(output_dir: Path, paths: Sequence[str]) -> Selection:
    selected, errors = [], []
    for path in paths:
        places = (Path(path), output_dir / "runs" / path)
        folder = next((place for place in places if (place / "result.json").is_file()), None)
        if folder is None:
            errors.append(f"runs: {path} is no folder of a run (looked from {Path.cwd()}, and in {output_dir}/runs)")
            continue
        try:
            selected.append((folder, read_result(folder)))
        except UserError as error:
            errors += error.messages
    if errors:
        raise UserError(errors)
    title = selected[0][0].name if len(selected) == 1 else f"{len(selected)} runs"
    return Selection(f"{_date(selected)}_{len(selected)}_runs", title, selected)


def _date(selected: Iterable[Run]) -> str:
    """Date and time of the newest run: `2026-11-25_14-40-43`."""
    return max("_".join(path.name.split("_")[:2]) for path, _ in selected)


def shown_command(overrides: Sequence[str]) -> str:
    """The command with these overrides, as a shell reads it."""
    return f"{PROGRAM} {shlex.join(overrides)}".strip()


def _asked_for(sweep: Path) -> dict[str, Any]:
    """The experiment of a sweep, and its overrides."""
    file = sweep / "multirun.yaml"
    asked = OmegaConf.load(file) if file.is_file() else OmegaConf.create()
    return {
        "experiment": OmegaConf.select(asked, "experiment.name") or "none",
        "overrides": list(OmegaConf.select(asked, "hydra.overrides.task") or ()),
    }


def _as_of(result: Mapping[str, Any], asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """A result as one of the sweep's experiment: a run that the sweep found done before may be of another one."""
    if asked["experiment"] == "none" or "config" not in result:
        return result
    return {**result, "config": {**result["config"], "experiment": {"name": asked["experiment"]}}}


def recorded_results(output_dir: Path) -> Iterator[dict[str, Any]]:
    """The results of an output folder, each with its run's `folder`, the newest first.

    A run that a sweep found done before (`skip_finished`) comes again, as one of the sweep's experiment.
    """
    results = {path.resolve(): {**result, "folder": str(path)} for path, result in runs(output_dir)}
    yield from results.values()
    for jobs in sorted((output_dir / "sweeps").glob(f"*/{JOBS}"), reverse=True):
        asked = _asked_for(jobs.parent)
        for path in sweep_runs(jobs.parent):
            result = results.get(path)
            if result and asked["experiment"] not in ("none", result["config"]["experiment"]["name"]):
                yield dict(_as_of(result, asked))
