"""The folder of a run: its result, its status, and what it shares with the runs beside it."""

from __future__ import annotations

import atexit
import copy
import errno
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from registries.registry import UserError

HEARTBEAT_SECONDS = 5.0
SAMPLE_SECONDS = 0.2
UNFINISHED = ("running", "killed", "failed", "oom", "nan")


class RunFolder:
    """`<output_dir>/runs/<time>_<name>/`, with `result.json` as the account of the run, written at every change.

    Attributes:
        path: the folder.
        result: the content of `result.json`.
    """

    def __init__(self, path: Path, result: dict[str, Any]):
        self.path, self.result = path, result

    @classmethod
    def create(cls, output_dir: Path, name: str, **result: Any) -> RunFolder:
        """A new folder, with status `running`."""
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        for number in range(1000):
            path = output_dir / "runs" / (f"{stamp}_{name}" + (f"_{number}" if number else ""))
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:  # a run beside this one was started in the same second
                continue
            except OSError as error:
                raise disk_error(error, path) from error
        (path / "figures").mkdir()
        folder = cls(path, {"status": "running", "metrics": {}, "baseline": {}, **result})
        folder.write()
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run's folder. Raises UserError where there is no readable result."""
        return cls(path, read_result(path))

    def copied(self) -> RunFolder:
        """A copy that is gone with this process: for processes that keep no records of their own."""
        path = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, path, ignore_errors=True)
        return RunFolder(Path(shutil.copytree(self.path, path / self.path.name)), copy.deepcopy(self.result))

    def write(self) -> None:
        """Write `result.json` aside and rename it, so that a reader never sees half of it."""
        self.result["pid"], self.result["heartbeat"] = os.getpid(), time.time()
        write_text(self.path / "result.json", json.dumps(self.result, indent=2))

    def record(self, **metrics: float) -> None:
        """Add metrics to the result."""
        self.result["metrics"].update(metrics)
        self.write()


class Heartbeat:
    """Renews the heartbeat of a run and samples the process's resident memory, in a thread.

    The process's own high-water mark would do for the memory of a single run, but never falls within a sweep.
    """

    def __init__(self, folder: RunFolder):
        self.folder, self.peak_bytes = folder, 0
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heartbeat:
        import torch

        self._sample()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # it was the peak of the jobs before it in a sweep
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stop.set()
        self._thread.join()

    def peak_mb(self) -> float:
        """Peak memory in megabytes: allocated on the GPU where there is one, else resident."""
        import torch

        self._sample()
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else self.peak_bytes
        return peak / 2**20

    def _beat(self) -> None:
        beats = 0
        while not self._stop.wait(SAMPLE_SECONDS):
            self._sample()
            beats += 1
            if beats % round(HEARTBEAT_SECONDS / SAMPLE_SECONDS) == 0:
                os.utime(self.folder.path / "result.json")

    def _sample(self) -> None:
        self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss)


def read_result(path: Path) -> dict[str, Any]:
    """A run's `result.json`; a run that says it is running although its process is gone is shown as `killed`."""
    try:
        result = json.loads((path / "result.json").read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} is not a run's folder: it has no result.json") from error
    except ValueError as error:
        raise UserError(f"{path / 'result.json'} is damaged: {error}") from error
    if result["status"] == "running" and not _alive(result):
        result["status"] = "killed"
    return result


def _alive(result: dict[str, Any]) -> bool:
    """Whether the process that wrote a result still runs (another process may have got its number since)."""
    try:
        process = psutil.Process(result["pid"])
        return process.create_time() <= result["heartbeat"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def at_work(result: dict[str, Any]) -> bool:
    """Whether another process is at work on the run that `read_result` gave."""
    return result["status"] == "running" and result["pid"] != os.getpid()


def runs(output_dir: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """All runs of an output folder with their results, the newest first."""
    folders = sorted((output_dir / "runs").glob("*/result.json"), key=lambda file: file.parent.name, reverse=True)
    for file in folders:
        yield file.parent, read_result(file.parent)


def find_run(output_dir: Path, fingerprint: str, statuses: tuple[str, ...]) -> Path | None:
    """The newest run with this fingerprint and one of these statuses, if no process is at work on it."""
    for path, result in runs(output_dir):
        if result.get("fingerprint") == fingerprint and result["status"] in statuses and not at_work(result):
            return path
    return None


def write_text(file: Path, text: str) -> None:
    """Write a file aside and rename it. Raises UserError where the disk is full."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text)
        os.replace(partial, file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise disk_error(error, file) from error


def disk_error(error: OSError, file: Path) -> Exception:
    """A full disk, or a place where nothing can be written, as a UserError; any other error as it is."""
    if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR):
        return UserError(
            f"cannot write to {file.parent}: {error.strerror}; set output_dir or cache_dir to another folder"
        )
    if error.errno != errno.ENOSPC:
        return error
    return UserError(f"the disk of {file.parent} is full: free some space, then continue with resume=auto")
