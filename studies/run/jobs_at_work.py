"""The jobs that are at work: a file for each, which stays where a job's process ended with it.

Some processes end without a word: by a signal that cannot be caught, or because the machine has no memory left. Where
jobs run in processes of their own, the sweep goes on: it is started again in its folder, and jobs that have ended are
passed over. A job whose process ended may only have been beside the one that was at fault, as a launcher may end all
its processes when one of them is gone. So it gets a second chance, in which no other such job is at work.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from registries.machines import is_alive, machine
from studies.run.files import write_text
from studies.run.jobs import Job, job_folders
from studies.run.results import SILENT_SECONDS, read_result

AT_WORK, LOST = "at_work", "lost"
CHANCES = 2


class ProcessLost(Exception):
    """The process of a job ended without a word."""


class BrokenOff(Exception):
    """While a job waited, the process of another was lost: the launcher is about to end all of them."""


@contextmanager
def job_at_work(job: Job, mark: str) -> Iterator[None]:
    """While the job runs, say so in a file; a job whose process was lost before runs while no other such job does.

    Raises:
        BrokenOff: such a job is not to begin, as another process was just lost.
    """
    suspected = times_lost(job) > 0
    with FileLock(job.sweep / ".suspects.lock") if suspected else nullcontext():
        if suspected and any(map(_left, job.sweep.glob(f"{AT_WORK}.*"))):
            raise BrokenOff
        file = job.sweep / f"{AT_WORK}.{job.number:05d}"
        process = {"pid": os.getpid(), "started": psutil.Process().create_time(), "machine": machine()}
        write_text(file, json.dumps({"config": mark, "overrides": job.overrides, **process}))
        try:
            yield
        finally:
            for left in (file, *ended_their_process(job.sweep).get(mark, ())):
                left.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def ended_their_process(sweep: Path) -> dict[str, list[Path]]:
    """Mark of a config -> what its jobs left in the folders of sweeps beside this one, whose processes are gone."""
    left: dict[str, list[Path]] = {}
    for file in sorted(sweep.parent.glob(f"*/{AT_WORK}.*")):
        content = _left(file)
        if content is not None:
            left.setdefault(content["config"], []).append(file)
    return left


def _left(file: Path) -> dict[str, Any] | None:
    """What the file of a job says whose process is gone; None where it is at work, or on another machine."""
    content = _content(file)
    if not content or content.get("machine", machine()) != machine() or is_alive(content["pid"], content["started"]):
        return None
    return content


def _content(file: Path) -> dict[str, Any]:
    """What the file of a job says; nothing where its job has just ended, or the disk was full."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and {"config", "pid", "started"} <= content.keys() else {}


def count_lost(sweep: Path) -> int:
    """Count the jobs of a sweep whose processes are gone since this was last done; note the failure of the hopeless.

    Returns:
        How many they are.
    """
    count = 0
    for file in sorted(sweep.glob(f"{AT_WORK}.*")):
        job = Job(sweep, int(file.suffix[1:]), [])
        if is_at_work(job):
            continue
        job = Job(sweep, job.number, _content(file).get("overrides", []))
        (sweep / LOST).mkdir(exist_ok=True)
        write_text(_count_of(job), str(times_lost(job) + 1))
        if times_lost(job) >= CHANCES:
            job.note_failure(ProcessLost(f"its process ended {CHANCES} times without a word: killed, or out of memory"))
        file.unlink(missing_ok=True)
        count += 1
    return count


def is_at_work(job: Job) -> bool:
    """Whether a process is at work on this job, here or on another machine, where its run's sign of life decides."""
    file = job.sweep / f"{AT_WORK}.{job.number:05d}"
    content = _content(file)
    if not content:
        return False
    if content.get("machine", machine()) == machine():
        return is_alive(content["pid"], content["started"])
    folder = job_folders(job.sweep).get(job.number)
    if folder is None:
        return time.time() - file.stat().st_mtime < SILENT_SECONDS
    return read_result(folder)["status"] == "running"


def times_lost(job: Job) -> int:
    """How often the process of this job of a sweep was lost."""
    file = _count_of(job)
    return int(file.read_text()) if file.is_file() else 0


def _count_of(job: Job) -> Path:
    return job.sweep / LOST / f"{job.number:05d}"
