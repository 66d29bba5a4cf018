"""The folder of a run: its result, its status, and what it shares with the runs beside it."""

from __future__ import annotations

import atexit
import copy
import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from registries.partial_files import clear_partial_files, is_alive, machine, partial_file
from registries.registry import UserError

HEARTBEAT_SECONDS = 5.0
SAMPLE_SECONDS = 0.2
SILENT_SECONDS = 60.0  # after so long without a heartbeat, a run of another machine or container is over
UNFINISHED = ("running", "killed", "failed", "oom", "nan")
STATUSES = (*UNFINISHED, "finished", "skipped")
KINDS = dict.fromkeys(("metrics", "baseline", "config", "dataset", "versions", "stages"), dict)
KINDS |= {"status": str, "fingerprint": str, "machine": str, "pid": int, "heartbeat": (int, float)}
CHECKSUM = "sha256"

log = logging.getLogger(__name__)


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
                (path / "figures").mkdir()
                break
            except FileExistsError:  # a run beside this one was started in the same second
                continue
            except OSError as error:
                raise disk_error(error, path) from error
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
        self.result |= {"pid": os.getpid(), "machine": machine(), "heartbeat": time.time()}
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
                with suppress(OSError):  # a disk that cannot be written for a while ends no run
                    os.utime(self.folder.path / "result.json")

    def _sample(self) -> None:
        self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss)


def read_result(path: Path) -> dict[str, Any]:
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


def _alive(result: Mapping[str, Any], changed: float) -> bool:
    """Whether the process that wrote a result still runs, whose heart has last beaten at `changed`.

    The number of a process says something on its own machine alone; elsewhere the age of the heartbeat decides.
    """
    if result.get("machine", machine()) == machine():
        return is_alive(result["pid"], result["heartbeat"])
    return time.time() - changed < SILENT_SECONDS


def at_work(result: Mapping[str, Any]) -> bool:
    """Whether another process is at work on the run that `read_result` gave."""
    own = result.get("pid") == os.getpid() and result.get("machine", machine()) == machine()
    return result["status"] == "running" and not own


def runs(output_dir: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """All runs of an output folder with their results, the newest first; a damaged result is told and passed over."""
    files = sorted((output_dir / "runs").glob("*/result.json"), key=lambda file: file.parent.name, reverse=True)
    yield from readable(file.parent for file in files)


def readable(folders: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Those of the runs' folders whose result can be read, with it; the others are told and passed over."""
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


def worker(path: Path, result: Mapping[str, Any]) -> str:
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


def clear_leftovers(output_dir: Path) -> None:
    """Remove what killed processes have left: partial files, and folders of runs in which nothing was recorded.

    The caller holds the lock under which runs are created.
    """
    clear_partial_files((output_dir / "sweeps").rglob("*.partial"))
    folders = [folder for folder in (output_dir / "runs").glob("*") if folder.is_dir()]
    for folder in folders:
        clear_partial_files(folder.rglob("*.partial"))
        if not any(path.is_file() for path in folder.rglob("*")):
            shutil.rmtree(folder, ignore_errors=True)


def write_text(file: Path, text: str) -> None:
    """Write a file aside and rename it. Raises UserError where the disk is full."""
    partial = partial_file(file)
    try:
        partial.write_text(text)
        os.replace(partial, file)
    except OSError as error:
        raise disk_error(error, file) from error
    finally:
        with suppress(OSError):  # what was told already counts
            partial.unlink(missing_ok=True)


def write_checked(file: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as JSON with a checksum, which `read_checked` compares. Raises UserError as `write_text`."""
    write_text(file, json.dumps({**content, CHECKSUM: _checksum(content)}))


def read_checked(file: Path, required: bool = False) -> dict[str, Any]:
    """What `write_checked` wrote.

    Args:
        required: whether there must be a checksum; the files of runs of earlier versions have none.

    Raises:
        UserError: the file is damaged, or not there.
    """
    try:
        content = json.loads(file.read_text())
        expected = content.pop(CHECKSUM, None)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error}): remove {file.parent} and run the study again") from error
    if expected != _checksum(content) and (required or expected is not None):
        raise UserError(
            f"{file} is damaged (its content does not fit its checksum): remove {file.parent} and run the study again"
        )
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def make_folder(folder: Path) -> None:
    """Make a folder if it is not there. Raises UserError where the disk is full or cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder / "file") from error


def disk_error(error: OSError, file: Path) -> Exception:
    """A full disk, or a place where nothing can be written, as a UserError; any other error as it is."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return UserError(
            f"cannot write to {file.parent}: {error.strerror}; set output_dir or cache_dir to another folder"
        )
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    return UserError(f"the disk of {file.parent} is full: free some space, then continue with resume=auto")
