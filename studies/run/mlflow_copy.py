"""The copy of a run in a tracking store: what it has, what it lacks, and how it is brought in line."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from registries.registry import UserError
from studies.config.flat import flatten
from studies.run.curves import Point, latest, read_points
from studies.run.files import write_text
from studies.run.jobs import JOBS
from studies.run.mlflow_fields import SAMPLE_TABLE, inputs_of, sample_table, tags_of
from studies.run.mlflow_store import Store, in_words, open_store
from studies.run.mlflow_sweep import open_sweep
from studies.run.results import read_result
from studies.run.tracking_state import CLOSE_SECONDS, STATE, new_state, read_state

KEY = "graftlab.key"  # the tag by which a copy is found whose making was not answered
MLFLOW_STATUS = {"finished": "FINISHED", "killed": "KILLED", "running": "RUNNING"}  # everything else: FAILED
SYSTEM = "system/"  # before the metrics of the machine, which MLflow samples itself
RUN_FILES = ("config.yaml", "result.json", "samples.json")


class RunCopy:
    """The copy of a run's folder in a store; brought in line with the folder as often as it is asked to.

    Args:
        folder: of the run.
        destination: `uri` (portable) and `experiment` of a run that begins or goes on; None: what `tracking.json` says.
        run_id: the MLflow run, where it is known and `tracking.json` does not tell it.
        state: what else is to be known of it: `sweep`, the folder of the sweep that the run is a job of; `log_model`,
            whether the trained model is sent too.

    Attributes:
        state: the content of `tracking.json`: where the copy is, which MLflow run it is, and whether all was sent.
    """

    def __init__(
        self,
        folder: Path,
        destination: Mapping[str, str] | None = None,
        run_id: str | None = None,
        **state: Any,
    ):
        self.folder, self.state = folder, read_state(folder)
        if destination is not None:
            if any(self.state.get(key) != value for key, value in destination.items()):
                self.state = new_state(destination) | {"run_id": run_id}
            self.state |= {"done": False, "ended": None, **state}
            self.write_state()
        self._lock = FileLock(folder / ".tracking.lock", thread_local=False)
        self.forget()

    @property
    def run_id(self) -> str | None:
        return self.state["run_id"]

    @property
    def address(self) -> str:
        """The address of the store, as messages show it."""
        return self.state["uri"].replace("${output_dir}", str(self.folder.parent.parent))

    @property
    def store_uri(self) -> str:
        """The address of the open store."""
        return self._store.client.tracking_uri

    def write_state(self) -> None:
        write_text(self.folder / STATE, json.dumps(self.state, indent=2))

    def forget(self) -> None:
        """Ask the store anew, the next time, what it holds."""
        self._store: Store | None = None
        self._stored: dict[tuple[str, int], list[str]] = {}  # metric and step -> the values that the store has
        self._read = 0  # bytes of the curves
        self._unsent: list[Point] = []

    def take(self, seconds: float) -> bool:
        """Keep other processes from sending this run; False if one is at it for longer than that."""
        try:
            self._lock.acquire(timeout=seconds)
        except Timeout:
            return False
        return True

    def release(self) -> None:
        """Let other processes send this run."""
        self._lock.release(force=True)

    def open(self, running: bool) -> None:
        """Find or make the MLflow run, give it its parameters, and learn which points it has.

        Raises:
            UserError: the store cannot be used, or another process is sending this run.
        """
        if self._store is not None:
            return
        if not self._lock.is_locked and not self.take(CLOSE_SECONDS):
            raise UserError(f"another process is sending {self.folder}; try again when it has ended")
        store = open_store(self.state["uri"], self.state["experiment"], self.folder.parent.parent)
        run = self._known_run(store) or self._create_run(store, {})
        self.state |= {"run_id": run.info.run_id, "created": store.created}
        self.write_state()
        if running:
            store.client.update_run(self.run_id, status="RUNNING")
        for key in (key for key in run.data.metrics if not key.startswith(SYSTEM)):
            for metric in store.client.get_metric_history(self.run_id, key):
                self._stored.setdefault((key, metric.step), []).append(_comparable(metric.value))
        self._send_account(store, run)
        self._store = store

    def _known_run(self, store: Store) -> Any:
        """The MLflow run of an earlier attempt; None where there is none, or it was deleted."""
        from mlflow.exceptions import MlflowException

        if self.run_id is None:  # an attempt whose answer did not come may have made one
            tag = f"tags.`{KEY}` = '{self.state['key']}'"
            return next(iter(store.client.search_runs([store.experiment], tag, max_results=1)), None)
        try:
            run = store.client.get_run(self.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _create_run(self, store: Store, tags: Mapping[str, str]) -> Any:
        started = int((self.folder / "config.yaml").stat().st_mtime * 1000)
        tags, sweep = {**tags, KEY: self.state["key"]}, Path(self.state.get("sweep") or "")
        if (sweep / JOBS).is_dir():
            destination = {key: self.state[key] for key in ("uri", "experiment")}
            tags["mlflow.parentRunId"] = open_sweep(sweep, store, destination)
        result = json.loads((self.folder / "result.json").read_text())
        return store.client.create_run(store.experiment, started, tags, result.get("name", self.folder.name))

    def _send_account(self, store: Store, run: Any) -> None:
        """The config, flattened to `group.key`, and what else is known; what the run already has is left as it is."""
        from mlflow.entities import Param, RunTag

        result = json.loads((self.folder / "result.json").read_text())
        params = {legal_name(key): str(value)[:6000] for key, value in flatten(result["config"]).items()}
        new = [Param(key, value) for key, value in params.items() if key not in run.data.params]
        tags = [RunTag(name, text) for name, text in tags_of(result).items() if name not in run.data.tags]
        for start in range(0, max(1, len(new)), 100):  # MLflow's limit for one batch
            store.client.log_batch(self.run_id, params=new[start : start + 100], tags=tags)
        if not run.inputs.dataset_inputs:
            store.client.log_inputs(self.run_id, inputs_of(result))

    def send_points(self) -> None:
        """Send what the curves have and the store has not; where a resumed run repeats a step, the old value stays."""
        self.open(running=True)
        points, self._read = read_points(self.folder, self._read)
        self._unsent += points
        self._send(
            [point for point in latest(self._unsent) if (legal_name(point.name), point.step) not in self._stored]
        )
        self._unsent = []

    def _send(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        for start in range(0, len(points), 1000):  # MLflow's limit for one batch
            batch = points[start : start + 1000]
            metrics = [Metric(legal_name(name), value, int(moment * 1000), step) for name, step, value, moment in batch]
            self._store.client.log_batch(self.run_id, metrics=metrics)
            for metric in metrics:
                self._stored.setdefault((metric.key, metric.step), []).append(_comparable(metric.value))

    def settle(self, result: Mapping[str, Any], running: bool) -> None:
        """Send all points, and the scores of a run that has finished; then the store has these and no others.

        Points cannot be taken out of a store. Where it has others than the folder (a resumed run gave a step another
        value, or a point came twice), a new MLflow run takes the place of the one that was there.
        """
        self.open(running)
        if not self.state.get("ended"):
            self.state["ended"] = time.time() if running else (self.folder / "result.json").stat().st_mtime
            self.write_state()
        expected: dict[tuple[str, int], dict[str, Point]] = {}
        for point in latest(read_points(self.folder)[0]) + self._scores(result):
            expected.setdefault((legal_name(point.name), point.step), {})[_comparable(point.value)] = point
        if any(
            len(set(values)) < len(values) or not expected.get(destination, {}).keys() >= set(values)
            for destination, values in self._stored.items()
        ):
            self._replace_run()
        self._send(
            [
                point
                for destination, values in expected.items()
                for value, point in values.items()
                if value not in self._stored.get(destination, ())
            ]
        )

    def _scores(self, result: Mapping[str, Any]) -> list[Point]:
        """The metrics of a finished run, at its last step, so that they are what is shown of it."""
        if result["status"] != "finished":  # the run may go on, and score the same again
            return []
        step = sum(stage["steps"] for stage in result.get("stages", {}).values())
        return [Point(name, step, value, self.state["ended"]) for name, value in result["metrics"].items()]

    def _replace_run(self) -> None:
        """A new MLflow run in the place of the one that is there, which can be restored."""
        old = self._store.client.get_run(self.run_id)
        run = self._create_run(self._store, old.data.tags)
        self.state["run_id"], self._stored = run.info.run_id, {}
        self.write_state()
        self._send_account(self._store, run)
        self._store.client.delete_run(old.info.run_id)

    def finish(self, result: Mapping[str, Any]) -> None:
        """End the MLflow run: the run's files as artifacts, its status."""
        client, folder = self._store.client, self.folder
        for file in RUN_FILES:
            if (folder / file).is_file():
                client.log_artifact(self.run_id, str(folder / file))
        for figure in sorted((folder / "figures").glob("*.png")):
            client.log_artifact(self.run_id, str(figure), "figures")
        samples = sample_table(folder)
        if samples is not None:
            client.log_dict(self.run_id, samples, SAMPLE_TABLE)
            client.set_tag(self.run_id, "mlflow.loggedArtifacts", json.dumps([{"path": SAMPLE_TABLE, "type": "table"}]))
        if self.state.get("log_model") and result["status"] == "finished":
            from studies.run.mlflow_model import log_model

            log_model(client, self.run_id, folder)
        client.set_tag(self.run_id, "status", result["status"])
        client.set_terminated(
            self.run_id, MLFLOW_STATUS.get(result["status"], "FAILED"), int(self.state["ended"] * 1000)
        )
        self.state["done"] = True
        self.write_state()


def legal_name(name: str) -> str:
    """A name with the characters that MLflow allows."""
    return re.sub(r"[^\w\-./: ]", "_", name)[:250]


def _comparable(value: float) -> str:
    """A value in as many digits as every store keeps; an infinite one as MLflow stores it."""
    largest = sys.float_info.max
    return "nan" if value != value else f"{max(-largest, min(largest, value)):.12g}"


def send_run(copy: RunCopy) -> None:
    """Bring the copy of a run that has ended in line with its folder.

    Raises:
        UserError: the run is at work, its folder is damaged, or the store cannot be used.
    """
    with in_words(copy.address):
        result = read_result(copy.folder)
        if result["status"] == "running":
            raise UserError(f"{copy.folder} is still at work, in process {result['pid']}; it sends its metrics itself")
        copy.settle(result, running=False)
        stored = json.loads((copy.folder / "result.json").read_text())
        if stored.get("mlflow_run_id") != copy.run_id:
            write_text(copy.folder / "result.json", json.dumps({**stored, "mlflow_run_id": copy.run_id}, indent=2))
        copy.finish(result)
