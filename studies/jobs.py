"""The jobs of a sweep: its folder, their failures, and which of them come last."""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from lightning_modules.processes import is_first, process_count
from lightning_modules.stopping import Interrupted, stop_if_requested
from registries.registry import UserError
from studies.display import say
from studies.run_folder import disk_error, write_text

JOBS, FAILURES, AT_WORK = "jobs", "failures", "at_work"

postponed: list[Callable[[], None]] = []  # jobs of this process's sweep that come last


@dataclass(frozen=True)
class Job:
    """The job of a sweep that is running.

    Attributes:
        sweep: the sweep's folder.
        number: of the job, from 0.
        overrides: what was given for it on the command line.
    """

    sweep: Path
    number: int
    overrides: list[str]

    @classmethod
    def current(cls) -> Job | None:
        """None where no sweep is running."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
            return None
        hydra = HydraConfig.get()
        return cls(Path(hydra.sweep.dir).resolve(), hydra.job.num, list(hydra.overrides.task))

    def note_folder(self, folder: Path) -> None:
        """Note the folder of the job's run in the sweep's folder."""
        (self.sweep / JOBS).mkdir(parents=True, exist_ok=True)
        write_text(self.sweep / JOBS / f"{self.number:05d}", str(folder.resolve()))

    def note_failure(self, error: BaseException) -> None:
        """Note why the job failed: its cause, its overrides, and the traceback."""
        (self.sweep / FAILURES).mkdir(parents=True, exist_ok=True)
        lines = [cause(error), " ".join(self.overrides), "".join(traceback.format_exception(error))]
        write_text(self.sweep / FAILURES / f"{self.number:05d}.txt", "\n".join(lines))


def cause(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def failures(sweep: Path) -> list[dict[str, Any]]:
    """Number, overrides and cause of the jobs of a sweep that failed, and the file with the traceback."""
    failed = []
    for file in sorted((sweep / FAILURES).glob("[0-9]*.txt")):
        why, overrides, *_ = [*file.read_text().split("\n"), ""]
        failed.append({"job": int(file.stem), "overrides": overrides, "cause": why, "traceback": str(file)})
    return failed


def run_in_sweep(cfg: Any, run: Callable[[Any], dict[str, Any]]) -> float:
    """Run a job of a sweep; its failure is noted and does not end the sweep, unless it is to stop at one.

    A job that ended its process at an earlier start (by an abort, or for lack of memory) would end every start of the
    sweep before the jobs behind it are run: it is put off until these are done.

    Returns:
        The validation loss; infinity for a job that failed or was put off.
    """
    from hydra.core.hydra_config import HydraConfig

    job, mark = Job.current(), _mark(cfg)
    if _in_turn() and mark in _ended_their_process(job.sweep):
        say(f"this job ended its process at an earlier start: it comes last ({' '.join(job.overrides)})")
        hydra = HydraConfig.instance().cfg

        def later() -> None:
            HydraConfig.instance().cfg = hydra
            _attempt(cfg, run, job, mark)

        postponed.append(later)
        return math.inf
    return _attempt(cfg, run, job, mark)


def _attempt(cfg: Any, run: Callable[[Any], dict[str, Any]], job: Job, mark: str) -> float:
    with _at_work(job, mark):
        try:
            return run(cfg)["metrics"].get("val/loss", math.inf)
        except (Exception, SystemExit) as error:
            stop_if_requested()  # a library may have made this error of the signal
            if isinstance(error, Interrupted):
                raise
            job.note_failure(error)
            stopping = cfg["on_failure"] == "stop" or process_count() > 1  # the others may be elsewhere in the job
            say(f"this job failed, the sweep {'stops' if stopping else 'goes on'}: {cause(error)}")
            if stopping:  # at once: an exception would end the sweep only after its last job
                postponed.clear()
                if is_first():
                    end_sweep(job.sweep, cfg)
                sys.exit(1)
            traceback.clear_frames(error.__traceback__)  # it holds the job's model, and so its memory
    gc.collect()
    return math.inf


def end_sweep(folder: Path, cfg: Mapping[str, Any]) -> None:
    """Run what was put off, write the summary, and end the process with status 1 if a job failed."""
    from studies.sweep import summarise

    waiting, postponed[:] = list(postponed), []
    if waiting:
        summarise(folder, cfg)  # what is put off may end the process once more
    for attempt in waiting:
        attempt()
    summarise(folder, cfg)
    if failures(folder):
        sys.exit(1)


# The jobs that ended their process


@contextmanager
def _at_work(job: Job, mark: str) -> Iterator[None]:
    """While the job runs, say so in a file: where its process ends with it, the file stays."""
    file = job.sweep / f"{AT_WORK}.{job.number:05d}"
    write_text(file, json.dumps({"config": mark, "pid": os.getpid(), "started": psutil.Process().create_time()}))
    try:
        yield
    finally:
        for left in (file, *_ended_their_process(job.sweep).get(mark, ())):
            left.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def _ended_their_process(sweep: Path) -> dict[str, list[Path]]:
    """Mark of a config -> what its jobs left in the folders of sweeps beside this one, whose processes are gone."""
    left: dict[str, list[Path]] = {}
    for file in sorted(sweep.parent.glob(f"*/{AT_WORK}.*")):
        try:
            content = json.loads(file.read_text())
            mark, pid, started = content["config"], content["pid"], content["started"]
        except (OSError, ValueError, TypeError, KeyError):  # its job has just ended, or the disk was full
            continue
        if not psutil.pid_exists(pid) or psutil.Process(pid).create_time() != started:
            left.setdefault(mark, []).append(file)
    return left


def _mark(cfg: Any) -> str:
    """What two jobs that compute the same have in common, as far as it can be known before any data is read."""
    from lightning_modules.building import plain
    from studies.fingerprint import relevant

    return hashlib.sha256(json.dumps(relevant(plain(cfg)), sort_keys=True).encode()).hexdigest()[:16]


def _in_turn() -> bool:
    """Whether the jobs of this sweep run one after the other in this process, and none waits for another's loss."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    plain = (hydra.launcher["_target_"], hydra.sweeper["_target_"])
    return process_count() == 1 and all(name.rpartition(".")[2].startswith("Basic") for name in plain)


# The folder of a sweep


def claim(folder: Path) -> Path:
    """Make a sweep's folder: this one, or one with a number behind it where another sweep has this one.

    Raises:
        UserError: nothing can be written there.
    """
    for number in range(10_000):
        own = folder.resolve()
        own = own.with_name(f"{own.name}_{number}") if number else own
        try:
            (own / JOBS).mkdir(parents=True)
            return own
        except FileExistsError:
            continue
        except OSError as error:
            raise disk_error(error, own) from error
    raise UserError(f"{folder} and ten thousand numbers behind it are taken: set hydra.sweep.dir")


def claim_for(config: Any) -> None:
    """Give the sweep of a Hydra config a folder of its own; its jobs' configs get the same."""
    from omegaconf import read_write

    asked = Path(config.hydra.sweep.dir)
    own = claim(asked)
    if own == asked.resolve():
        return
    with read_write(config):
        config.hydra.sweep.dir = str(own)
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(str(own))}")


def quoted(text: str) -> str:
    """A text as Hydra reads it between quotes."""
    return "'" + re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text) + "'"
