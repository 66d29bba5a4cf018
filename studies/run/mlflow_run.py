"""The MLflow run of a run: a copy of what its folder holds, made beside the training by a thread.

The folder is the account of a run (`curves.jsonl`, `result.json`), the store has a copy. Whatever the store does, the
run goes on; what could not be sent is sent when the store answers again, at the next start of any run in the same
output folder, or by `python -m studies.tools.track`. How far the copy has come stands in the folder's `tracking.json`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.loggers import Logger

from registries.registry import UserError
from studies.run.mlflow_copy import RunCopy, send_run
from studies.run.mlflow_store import in_words
from studies.run.results import read_result
from studies.run.run_folder import RunFolder
from studies.run.tracking_state import CLOSE_SECONDS, STATE, read_state

SEND_SECONDS = 10.0
MODEL_SECONDS = 600.0  # that it waits where a model is sent
MEND_SECONDS = 5.0  # that it waits while the runs before it are sent


class MLflowRun(Logger):
    """A Lightning logger that sends what the run's folder holds: every ten seconds, and with each checkpoint.

    It sends in a thread of its own, which alone waits for the store, so that no step does.
    """

    def __init__(self, copy: RunCopy, system_metrics: bool = False):
        super().__init__()
        self._monitor: Any = None  # of the machine
        self.copy, self.first_step = copy, 0
        self.problem: str | None = None  # why the last attempt failed
        self.worker = Worker(lambda: self._attempt(copy.send_points), SEND_SECONDS)
        self._sent = self.worker.submit(lambda: self._attempt(copy.send_points))
        if system_metrics:
            self.worker.submit(self._start_monitor)
        self.worker.submit(self._mend)

    @property
    def name(self) -> str:
        return "mlflow"

    @property
    def version(self) -> str:
        return self.copy.folder.name

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the parameters are sent from the folder."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Nothing: CurveFile writes them to the folder, from where they are sent."""

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Send what there is, so that the store knows what a killed run goes on from."""
        if self._sent.is_set():  # a store that does not answer would have ever more to do
            self._sent = self.worker.submit(lambda: self._attempt(self.copy.send_points))

    def close(self, folder: RunFolder) -> None:
        """End the MLflow run as the folder's run has ended, with its scores and files; tell what could not be sent."""
        deadline = time.monotonic() + (MODEL_SECONDS if self.copy.state.get("log_model") else CLOSE_SECONDS)
        self.worker.closing.set()
        if self._monitor is not None:
            self._monitor.finish()
        steps = [lambda: self.copy.settle(folder.result, running=True)]
        steps += [lambda: self.copy.finish(folder.result)]
        for step in steps:
            sent = self.worker.submit(lambda step=step: self._attempt(step) or self._attempt(step))
            if not sent.wait(deadline - time.monotonic()):
                self.problem = self.problem or f"the store takes more than {CLOSE_SECONDS:.0f} s to answer"
            if self.problem is not None:
                break
            if folder.result["mlflow_run_id"] != self.copy.run_id:
                folder.result["mlflow_run_id"] = self.copy.run_id
                folder.write()
        self.worker.submit(self.copy.release)
        self.worker.stop()
        if self.problem is not None:
            tell(
                f"not in the tracking store: {self.problem}. All metrics are kept in the run's folder; send them with\n"
                f"  python -m studies.tools.track {folder.path}"
            )

    def _start_monitor(self) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        if self.copy.run_id is not None and self.problem is None:
            self._monitor = SystemMetricsMonitor(self.copy.run_id, tracking_uri=self.copy.store_uri)
            self._monitor.start()

    def _mend(self) -> None:
        """Send what earlier runs of this output folder left, in five seconds at most where this run has ended."""
        if self.problem is None:
            started = time.monotonic()
            late = lambda: self.worker.closing.is_set() and time.monotonic() - started > MEND_SECONDS  # noqa: E731
            mend(self.copy, late)

    def _attempt(self, send: Callable[[], None]) -> bool:
        """Send something; what goes wrong is told once. Returns whether it went well."""
        try:
            with in_words(self.copy.address):
                send()
        except UserError as error:
            if self.problem is None:
                tell(f"tracking: {error}. The run goes on; its metrics are kept in its folder")
            self.problem = str(error)
            self.copy.forget()
            return False
        self.problem = None
        return True


class Worker:
    """A thread that does one thing after another, and does not keep the process from ending.

    Args:
        idle: what it does when it had nothing to do for so many `seconds`.
    """

    def __init__(self, idle: Callable[[], Any], seconds: float):
        self.closing = threading.Event()  # told to those that take long
        self._idle, self._seconds = idle, seconds
        self._tasks: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def submit(self, task: Callable[[], Any]) -> threading.Event:
        """Do this after all that was asked for before. Returns what is set when it is done."""
        done = threading.Event()
        self._tasks.put((task, done))
        return done

    def stop(self) -> None:
        """End the thread after all that was asked for."""
        self._tasks.put(None)

    def _work(self) -> None:
        while True:
            try:
                task = self._tasks.get(timeout=self._seconds)
            except queue.Empty:
                self._idle()
                continue
            if task is None:
                return
            do, done = task
            try:
                do()
            finally:
                done.set()


def mend(live: RunCopy, late: Callable[[], bool]) -> None:
    """Send what other runs of the same output folder left: they were killed, or their store did not answer."""
    for file in sorted(live.folder.parent.glob(f"*/{STATE}")):
        state = read_state(file.parent)
        if late() or state.get("done", True) or any(state[key] != live.state[key] for key in ("uri", "experiment")):
            continue
        copy = RunCopy(file.parent)
        if not copy.take(0):
            continue  # that run is at work, or another process sends it
        try:
            if read_result(copy.folder)["status"] != "running":
                send_run(copy)
        except UserError as error:
            tell(f"tracking: what is left of {copy.folder} was not sent: {error}")
        finally:
            copy.release()


def tell(text: str) -> None:
    from studies.progress import say

    say(text)
