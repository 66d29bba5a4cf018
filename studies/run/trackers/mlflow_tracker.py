"""MLflow: a store in a file, or a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import MinLen

from studies.run.jobs import sweep_of
from studies.run.mlflow_store import address_errors
from studies.run.trackers import TRACKERS
from studies.run.trackers.tracker import RunTracker


@TRACKERS.register("server", check=address_errors)
@TRACKERS.register("mlflow", check=address_errors)
@dataclass(frozen=True)
class MLflowTracker:
    """Copies runs to an MLflow store, by a thread beside the training.

    Args:
        uri: the store's address.
        experiment: that its runs belong to.
        system_metrics: let MLflow sample processor, memory, disk, network and GPU.
        log_model: send the trained model too.
    """

    uri: Annotated[str, MinLen(1)]
    experiment: str
    system_metrics: bool
    log_model: bool

    def open(self, folder: Path, output_dir: Path) -> RunTracker:
        """See `Tracker`."""
        import mlflow  # noqa: F401 (here, as two threads that import at once may wait for each other)

        from studies.run.mlflow_copy import RunCopy
        from studies.run.mlflow_run import MLflowRun
        from studies.run.tracking_state import destination_of

        destination = destination_of(self.uri, self.experiment, folder, output_dir)
        sweep = sweep_of(folder)
        copy = RunCopy(folder, destination, sweep=None if sweep is None else str(sweep), log_model=self.log_model)
        return MLflowRun(copy, self.system_metrics)

    def log_sweep(self, folder: Path, output_dir: Path, at_end: bool) -> None:
        """See `Tracker`."""
        import mlflow  # noqa: F401

        from studies.run.mlflow_sweep import send_sweep_in_time
        from studies.run.tracking_state import destination_of

        destination = destination_of(self.uri, self.experiment, folder, output_dir)
        send_sweep_in_time(folder, destination, at_end)
