"""Reading the results of runs: which there are, whether they are whole, and whether they are at work."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any, Required, TypedDict, get_origin, get_type_hints

from registries.machines import is_alive, machine
from registries.registry import UserError

SILENT_SECONDS = 60.0  # after so long without a heartbeat, a run of another machine or container is over
UNFINISHED = ("running", "killed", "failed", "oom", "nan")
DONE = ("finished", "skipped")
STATUSES = (*UNFINISHED, *DONE)
log = logging.getLogger(__name__)


class StageResult(TypedDict):
    """What a finished stage has left.

    Attributes:
        steps: that were done; fewer than planned where training stopped early.
        tokens: that these steps saw.
        trained: name -> shape of the parameters that it trained.
        seconds: of training, validations left out.
        tokens_per_s: of training.
        notes: what was told about its settings.
    """

    steps: int
    tokens: int
    trained: dict[str, list[int]]
    seconds: float
    tokens_per_s: float
    notes: list[str]


class Result(TypedDict, total=False):
    """The content of a run's `result.json`. Earlier versions wrote fewer keys; these two are in all.

    Attributes:
        status: one of `STATUSES`.
        metrics: name -> value, as in MLflow.
        baseline: name -> score of the untouched model.
        config: the whole config, as plain dicts.
        name: of the run, in words.
        overrides: what was typed for it on the command line; empty where it was started from Python.
        hardware: what it computed on.
        revision: commit of the code, and whether it was changed since; None outside a repository.
        fingerprint: equal for runs that compute the same, see `studies.run.fingerprint`.
        dataset: what was read: counts of documents, blocks and tokens by split, hashes, warnings.
        versions: of the project's code, Python and the libraries that a result depends on.
        stages: name -> what a finished stage left, in order.
        found: stage -> key -> value, of what the trainer was asked to find.
        layers: whose attention was replaced.
        notes: what a user should know about the replacement in this model.
        preflight: name of a check -> what it measured, its limit, and whether it passed.
        controls: name -> name of the folder of the control that this run is compared with.
        error: why the run ended, where it did not finish.
        mlflow_run_id: None as long as no store has it.
        pid, machine, heartbeat: of the process that has written last, and when (seconds since 1970).
    """

    status: Required[str]
    metrics: Required[dict[str, float]]
    baseline: dict[str, float]
    config: dict[str, Any]
    name: str
    overrides: list[str]
    hardware: dict[str, Any]
    revision: dict[str, Any] | None
    fingerprint: str
    dataset: dict[str, Any]
    versions: dict[str, str]
    stages: dict[str, StageResult]
    found: dict[str, dict[str, float]]
    layers: list[int]
    notes: list[str]
    preflight: dict[str, Any]
    controls: dict[str, str]
    error: str
    mlflow_run_id: str | None
    pid: int
    machine: str
    heartbeat: float


def _kind(hint: Any) -> type | tuple[type, ...]:
    """What `isinstance` takes for a type of `Result`."""
    kinds = {float: (int, float), str | None: (str, NoneType), dict[str, Any] | None: (dict, NoneType)}
    return kinds.get(hint) or get_origin(hint) or hint


KINDS = {key: _kind(hint) for key, hint in get_type_hints(Result).items()}


def read_result(path: Path) -> Result:
    """A run's `result.json`; a run that says it is running although its process is gone is shown as `killed`.

    Raises:
        UserError: there is none, or it is damaged.
    """
    file = path / "result.json"
    try:
        result, changed = json.loads(file.read_text()), file.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path} is not a run's folder: it has no result.json") from error
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{file} is damaged: {error}") from error
    wrong = _wrong_shape(result)
    if wrong:
        raise UserError(f"{file} is damaged: {wrong}")
    if result["status"] == "running" and not _alive(result, changed):
        result["status"] = "killed"
    return result


def _wrong_shape(result: Any) -> str | None:
    """What makes this no content of a `result.json`, if anything does."""
    if not isinstance(result, dict):
        return "it holds no mapping"
    required = ["status", "metrics", *(("pid", "heartbeat") if result.get("status") == "running" else ())]
    missing = [key for key in required if key not in result]
    if missing:
        return f"it has no {missing[0]!r}"
    for key, kind in KINDS.items():
        if key in result and not isinstance(result[key], kind):
            return f"its {key!r} is {str(result[key])[:50]!r}"
    if result["status"] not in STATUSES:
        return f"its 'status' is {result['status']!r}"
    if result["metrics"] and "config" not in result:
        return "it has no 'config'"
    strange = [name for name, value in result["metrics"].items() if not isinstance(value, (int, float))]
    return f"its metric {strange[0]!r} is no number" if strange else None


def _alive(result: Result, changed: float) -> bool:
    """Whether the process that wrote a result still runs, whose heart has last beaten at `changed`.

    The number of a process says something on its own machine alone; elsewhere the age of the heartbeat decides.
    """
    if result.get("machine", machine()) == machine():
        return is_alive(result["pid"], result["heartbeat"])
    return time.time() - changed < SILENT_SECONDS


def at_work(result: Result) -> bool:
    """Whether another process is at work on the run that `read_result` gave."""
    own = result.get("pid") == os.getpid() and result.get("machine", machine()) == machine()
    return result["status"] == "running" and not own


def runs(output_dir: Path) -> Iterator[tuple[Path, Result]]:
    """All runs of an output folder with their results, the newest first; a damaged result is told and passed over."""
    files = sorted((output_dir / "runs").glob("*/result.json"), key=lambda file: file.parent.name, reverse=True)
    yield from readable(file.parent for file in files)


def readable(folders: Iterable[Path]) -> Iterator[tuple[Path, Result]]:
    """The folders whose result can be read, each with its result; the other folders are told and passed over."""
    for folder in folders:
        try:
            result = read_result(folder)
        except UserError as error:
            _warn(f"passing over a run: {error}; remove its folder, or put the file back")
            continue
        yield folder, result


def find_run(output_dir: Path, fingerprint: str, statuses: tuple[str, ...]) -> Path | None:
    """The newest run with this fingerprint and one of these statuses, if no process is at work on it."""
    for path, result in runs(output_dir):
        if result.get("fingerprint") != fingerprint or result["status"] not in statuses:
            continue
        if at_work(result):
            _warn(f"passing over a run: {path} is still at work, {worker(path, result)}")
        elif result["status"] == "finished" and not result["metrics"]:
            _warn(f"passing over a run: {path / 'result.json'} is damaged: it has no metrics; remove its folder")
        else:
            return path
    return None


def worker(path: Path, result: Result) -> str:
    """Who is at work on a run, in words."""
    if result.get("machine", machine()) == machine():
        return f"in process {result['pid']}"
    age = time.time() - (path / "result.json").stat().st_mtime
    return (
        f"in process {result['pid']} of another machine or container, which was heard of {age:.0f} s ago (it counts as "
        f"ended {SILENT_SECONDS:.0f} s after its last sign)"
    )


@lru_cache(maxsize=1000)
def _warn(message: str) -> None:
    """Log a warning, once in a process: a sweep looks through all runs at every job."""
    log.warning(message)
