"""The MLflow run of a run: buffered metrics, flat parameters, artifacts."""

from __future__ import annotations

import logging
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch.loggers import Logger

from registries.registry import UserError

FLUSH_SECONDS = 10.0
ANSWER_SECONDS = 10.0
STATUSES = {"finished": "FINISHED", "killed": "KILLED"}  # everything else: FAILED


def open_tracking(tracking: Mapping[str, Any], output_dir: Path, run_name: str, run_id: str | None) -> Logger | None:
    """The logger of this config group; None for `tracking=none`. `run_id` continues an MLflow run."""
    if tracking["name"] == "none":
        return None
    return MLflowRun(tracking["uri"], tracking["experiment"], output_dir, run_name, run_id)


class MLflowRun(Logger):
    """A Lightning logger that writes one MLflow run, a batch every ten seconds, so that steps do not wait for it.

    Lightning's own MLflowLogger writes every metric at once and cuts parameters at 250 characters.

    Args:
        uri: of the tracking store.
        experiment: its name; made if it is not there.
        output_dir: where the lock lies that keeps two processes from setting up one SQLite file at once.
        run_name: shown in the UI.
        run_id: an existing run to continue.
    """

    def __init__(self, uri: str, experiment: str, output_dir: Path, run_name: str, run_id: str | None = None):
        super().__init__()
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self.first_step = 0  # of the stage that is running: steps are counted through all stages
        self._buffer: list[Any] = []
        self._flushed = time.monotonic()
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)  # they tell each table that they set up
        output_dir.mkdir(parents=True, exist_ok=True)
        _require_answer(uri)
        try:
            with FileLock(output_dir / "mlflow.lock"):
                self.client = MlflowClient(uri)
                found = self.client.get_experiment_by_name(experiment)
                artifacts = (output_dir / "artifacts").resolve().as_uri() if uri.startswith("sqlite") else None
                identity = found.experiment_id if found else self.client.create_experiment(experiment, artifacts)
            run = self.client.get_run(run_id) if run_id else self.client.create_run(identity, run_name=run_name)
        except MlflowException as error:
            raise UserError(
                f"tracking.uri={uri}: {str(error).splitlines()[0]}; set tracking.uri, or tracking=none for none"
            ) from error
        self.run_id = run.info.run_id
        self.client.update_run(self.run_id, status="RUNNING")

    @property
    def name(self) -> str:
        return "mlflow"

    @property
    def version(self) -> str:
        return self.run_id

    def log_hyperparams(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """Nested parameters, flattened to `group.key`; what the run already has is left as it is."""
        from mlflow.entities import Param

        known = self.client.get_run(self.run_id).data.params
        new = [Param(key, str(value)[:6000]) for key, value in flatten(params).items() if key not in known]
        for start in range(0, len(new), 100):  # MLflow's limit for one batch
            self.client.log_batch(self.run_id, params=new[start : start + 100])

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep the metrics for the next batch."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        at = self.first_step + (step or 0)
        self._buffer += [Metric(key, float(value), now, at) for key, value in metrics.items() if key != "epoch"]
        self.save()

    def save(self) -> None:
        """Write what was kept if the last time was ten seconds ago; Lightning calls this with every logged step."""
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was kept."""
        for start in range(0, len(self._buffer), 1000):  # MLflow's limit for one batch
            self.client.log_batch(self.run_id, metrics=self._buffer[start : start + 1000])
        self._buffer, self._flushed = [], time.monotonic()

    def close(self, status: str, folder: Path) -> None:
        """End the run: its last metrics, its files as artifacts, its status."""
        self.flush()
        for name in ("config.yaml", "result.json", "samples.json"):
            if (folder / name).is_file():
                self.client.log_artifact(self.run_id, str(folder / name))
        for figure in sorted((folder / "figures").glob("*.png")):
            self.client.log_artifact(self.run_id, str(figure), "figures")
        self.client.set_tag(self.run_id, "status", status)
        self.client.set_terminated(self.run_id, STATUSES.get(status, "FAILED"))


def log_sweep(cfg: Mapping[str, Any], folder: Path, run_ids: Iterable[str | None]) -> None:
    """A run for a sweep as a whole, the parent of its jobs' runs, with the files of the sweep's folder as artifacts."""
    if cfg["tracking"]["name"] == "none":
        return
    tracking, output_dir = cfg["tracking"], Path(cfg["output_dir"])
    run = MLflowRun(tracking["uri"], tracking["experiment"], output_dir, f"sweep_{folder.name}")
    for identity in filter(None, run_ids):
        run.client.set_tag(identity, "mlflow.parentRunId", run.run_id)
    for file in sorted(folder.glob("*.*")):
        run.client.log_artifact(run.run_id, str(file))
    run.client.set_terminated(run.run_id, "FINISHED")


def _require_answer(uri: str) -> None:
    """Raise UserError if nothing answers at the address of a server; MLflow itself would try for four minutes."""
    if not uri.startswith("http"):
        return
    try:
        urllib.request.urlopen(uri, timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:  # an answer
        pass
    except (OSError, ValueError) as error:
        raise UserError(
            f"tracking.uri={uri}: no answer ({error}); start the server, set tracking.uri, or tracking=none for none"
        ) from error


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
