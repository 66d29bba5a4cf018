"""Send to the tracking store what it lacks of runs that are over.

python -m studies.tools.track outputs                   what its store lacks of runs and sweeps
python -m studies.tools.track outputs/runs/<run>        one run, or one sweep, whatever the store has of it
python -m studies.tools.track outputs http://host:5000  the same, to another store than theirs

In the store, a run is then as it is in its folder: the same points, scores, files and status.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from registries.registry import UserError
from studies.progress import say
from studies.run.jobs import JOBS
from studies.run.mlflow_copy import RunCopy, send_run
from studies.run.mlflow_store import open_store, portable
from studies.run.mlflow_sweep import send_sweep
from studies.run.results import read_result
from studies.run.tracking_state import STATE, destination_of, read_state


def track(folder: Path, uri: str | None = None) -> None:
    """Send a run, a sweep, or what is missing of all runs and sweeps of an output folder.

    Raises:
        UserError: the folder is none of these; or what could not be sent, a message for each.
    """
    alone = (folder / "result.json").is_file() or (folder / JOBS).is_dir()
    runs = [folder] if (folder / "result.json").is_file() else _parents(folder, "runs/*/result.json")
    sweeps = [folder] if (folder / JOBS).is_dir() else _parents(folder, f"sweeps/*/{STATE}")
    if not runs and not sweeps:
        raise UserError(f"{folder} is no run's folder, no sweep's and no output folder: it holds nothing to send")
    problems, sent = [], 0
    for path in [*runs, *sweeps]:
        try:
            destination = _destination(path, uri)
            if destination is not None and (alone or not _was_sent(path, destination)):
                _send(path, destination)
                sent += 1
                say(f"sent {path}")
        except UserError as error:
            problems += [f"{path}: {message}" for message in error.messages]
    print(f"{sent} sent; {len(runs) + len(sweeps) - sent - len(problems)} were there, or are without tracking")
    if problems:
        raise UserError(problems)


def _parents(folder: Path, pattern: str) -> list[Path]:
    return sorted(file.parent for file in folder.glob(pattern))


def _destination(path: Path, uri: str | None) -> dict[str, str] | None:
    """The store and the experiment that a run or a sweep is sent to; None where it was made without tracking."""
    state = read_state(path)
    destination = {key: state[key] for key in ("uri", "experiment")} if state else _configured(path)
    if destination is None or uri is None:
        return destination
    return destination_of(uri, destination["experiment"], path, path.parent.parent)


def _configured(path: Path) -> dict[str, str] | None:
    """The store that the config of a run names, which has no record of what was sent."""
    if not (path / "result.json").is_file():
        raise UserError("this sweep has no summary, so there is nothing to send of it; send its runs")
    config = read_result(path)["config"]
    if config["tracking"]["name"] == "none":
        return None
    uri = portable(config["tracking"]["uri"], Path(config["output_dir"]))
    return {"uri": uri, "experiment": config["tracking"]["experiment"]}


@lru_cache
def _created(uri: str, experiment: str, output_dir: Path) -> int:
    """When the experiment of a store was made."""
    return open_store(uri, experiment, output_dir).created


def _was_sent(path: Path, destination: Mapping[str, str]) -> bool:
    """Whether all of a run or sweep was sent to this store, and the store is still the one it was sent to."""
    state = read_state(path)
    is_same = state.get("done") and all(state[key] == value for key, value in destination.items())
    return bool(is_same) and state.get("created") == _created(
        destination["uri"], destination["experiment"], path.parent.parent
    )


def _send(path: Path, destination: Mapping[str, str]) -> None:
    if (path / JOBS).is_dir():
        send_sweep(path, destination)
        return
    result = read_result(path)
    if result["status"] == "running":
        raise UserError(f"it is still at work, in process {result['pid']}, and sends its metrics itself")
    copy = RunCopy(path, destination, result.get("mlflow_run_id"))
    try:
        send_run(copy)
    finally:
        copy.release()


def main(folder: str, uri: str | None = None) -> None:
    """The command line."""
    track(Path(folder), uri)


if __name__ == "__main__":
    from studies.tools.command import run_tool

    run_tool(main, __doc__)
