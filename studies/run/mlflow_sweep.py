"""The MLflow run of a sweep: the parent of the runs of its jobs, from the first of them on."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from registries.registry import UserError
from studies.progress import say
from studies.report.cells import cell, shown_columns
from studies.report.markdown import bullets, literal, markdown_table
from studies.run.files import write_text
from studies.run.jobs import SUMMARY, sweep_runs
from studies.run.mlflow_store import Store, in_words, open_store
from studies.run.sweep_account import SweepAccount
from studies.run.tracking_state import CLOSE_SECONDS, STATE, new_state, read_state

LOCK = ".tracking.lock"
SOURCE = {"mlflow.source.name": "train.py", "mlflow.source.type": "LOCAL"}
TABLE = "summary_table.json"  # as MLflow's UI shows tables


def send_sweep_in_time(folder: Path, destination: Mapping[str, str], at_end: bool) -> None:
    """Send a sweep as far as the store answers in time, and tell what could not be sent; before its end, in passing."""
    problems = [f"the store takes more than {CLOSE_SECONDS:.0f} s to answer"]

    def send() -> None:
        try:
            send_sweep(folder, destination, at_end)
        except UserError as error:
            problems.append(str(error))
        else:
            problems.clear()

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    if not at_end:  # what goes wrong is told at the end
        return
    thread.join(CLOSE_SECONDS)
    if problems:
        say(f"the sweep is not in the tracking store: {problems[-1]}")
        say(f"send it with\n  python -m studies.tools.track {folder}")


def open_sweep(folder: Path, store: Store, destination: Mapping[str, str]) -> str:
    """The MLflow run of a sweep, which is made if there is none.

    Returns:
        Its identity.
    """
    with FileLock(folder / LOCK):  # several jobs may begin at once
        state = read_state(folder)
        if any(state.get(key) != value for key, value in destination.items()):
            state = new_state(destination)
        if state["run_id"] is None or state.get("created") != store.created:
            account = SweepAccount.read(folder)
            started = None if account is None else int(account.started * 1000)
            run = store.client.create_run(store.experiment, started, SOURCE, sweep_name(folder))
            state |= {"run_id": run.info.run_id, "created": store.created, "done": False}
            write_text(folder / STATE, json.dumps(state, indent=2))
        return state["run_id"]


def sweep_name(folder: Path) -> str:
    """What a sweep is over: `sweep depth, seed`."""
    account = SweepAccount.read(folder)
    keys = [] if account is None else [key.rpartition(".")[2] for key in account.keys]
    return f"sweep {', '.join(keys) or folder.name}"


def send_sweep(folder: Path, destination: Mapping[str, str], at_end: bool = True) -> None:
    """Send a sweep's summary and files to this store, and make it the parent of its runs as far as the store has them.

    Raises:
        UserError: the store cannot be used.
    """
    output_dir = folder.parent.parent
    with in_words(destination["uri"].replace("${output_dir}", str(output_dir))):
        store = open_store(destination["uri"], destination["experiment"], output_dir)
        identity = open_sweep(folder, store, destination)
        for child in filter(None, (read_state(path).get("run_id") for path in sweep_runs(folder))):
            store.client.set_tag(child, "mlflow.parentRunId", identity)
        if (folder / SUMMARY).is_file():
            _send_summary(store.client, identity, json.loads((folder / SUMMARY).read_text()))
        if not at_end:
            return
        for file in sorted(folder.glob("*.*")):
            if file.is_file() and file.name != STATE and not file.name.startswith("."):
                store.client.log_artifact(identity, str(file))
        failed = json.loads((folder / SUMMARY).read_text())["failed"] if (folder / SUMMARY).is_file() else []
        store.client.set_terminated(identity, "FAILED" if failed else "FINISHED")
        write_text(folder / STATE, json.dumps({**read_state(folder), "done": True}, indent=2))


def _send_summary(client: Any, identity: str, summary: Mapping[str, Any]) -> None:
    """The best setting's metrics, the jobs by status, and the table as description and as artifact."""
    from mlflow.entities import Metric, RunTag

    jobs, best = summary.get("jobs", {}), summary.get("best", {})
    ended = sum(count for status, count in jobs.items() if status != "planned")
    numbers = best | {f"jobs/{status}": count for status, count in jobs.items()}
    moment = round(1000 * time.time())
    metrics = [Metric(name, value, moment, ended) for name, value in numbers.items() if math.isfinite(value)]
    lines = next((value for key, value in summary.items() if key.startswith("the sweep")), [])
    columns = shown_columns(lines, 2)
    rows = [[cell(line, column) for column in columns] for line in lines]
    headings = [column.replace(".", " ") for column in columns]  # MLflow's UI takes a dot for a step into a mapping
    description = [markdown_table(columns, rows), bullets(map(literal, summary["notes"]))] if rows else []
    tags = {"mlflow.note.content": "\n\n".join(description), "status": _words(jobs)}
    client.log_batch(identity, metrics=metrics, tags=[RunTag(name, text[:5000]) for name, text in tags.items()])
    client.log_dict(identity, {"columns": headings, "data": rows}, TABLE)
    client.set_tag(identity, "mlflow.loggedArtifacts", json.dumps([{"path": TABLE, "type": "table"}]))


def _words(jobs: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in jobs.items())
