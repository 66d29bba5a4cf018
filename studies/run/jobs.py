"""The jobs of a sweep: the sweep's folder, and the jobs' failures."""

from __future__ import annotations

import math
import re
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registries.registry import UserError
from studies.run.files import disk_error, write_text
from studies.run.results import DONE, read_result
from studies.run.sweep_account import SweepAccount

JOBS, FAILURES, HALVINGS = "jobs", "failures", "halvings"
STOPPED, SUMMARY = "stopped", "summary.json"


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

    def loss(self) -> float | None:
        """The validation loss of a job that has ended; infinity where it failed, None where it has not ended."""
        if (self.sweep / FAILURES / f"{self.number:05d}.txt").is_file():
            return math.inf
        file = self.sweep / JOBS / f"{self.number:05d}"
        result = read_result(Path(file.read_text())) if file.is_file() else {"status": "running"}
        return result["metrics"].get("val/loss", math.inf) if result["status"] in DONE else None

    def note_halving(self, text: str) -> None:
        """Note that the job is done again with smaller batches; the last note counts."""
        (self.sweep / HALVINGS).mkdir(parents=True, exist_ok=True)
        write_text(self.sweep / HALVINGS / f"{self.number:05d}.txt", text)

    def owns(self, folder: Path) -> bool:
        """Whether this is the folder of the job's run."""
        file = self.sweep / JOBS / f"{self.number:05d}"
        return file.is_file() and file.read_text() == str(folder.resolve())


def sweep_of(folder: Path) -> Path | None:
    """The folder of the sweep in which this process does the job whose run has this folder."""
    job = Job.current()
    return job.sweep if job is not None and job.owns(folder) else None


def swept_keys() -> list[str] | None:
    """The keys that vary in the sweep of this process's job; None where it is of no sweep."""
    job = Job.current()
    account = None if job is None else SweepAccount.read(job.sweep)
    return None if account is None else account.keys


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


def halvings(sweep: Path) -> list[str]:
    """The jobs of a sweep that were done with smaller batches, one line each."""
    return [f"job {int(file.stem)}: {file.read_text()}" for file in sorted((sweep / HALVINGS).glob("[0-9]*.txt"))]


def ended_jobs(sweep: Path) -> int:
    """How many jobs of a sweep have failed, or have finished."""
    numbers = {file.stem for file in (sweep / FAILURES).glob("[0-9]*.txt")}
    for file in (sweep / JOBS).glob("[0-9]*"):
        with suppress(UserError):  # of a result that is damaged
            if read_result(Path(file.read_text()))["status"] in DONE:
                numbers.add(file.name)
    return len(numbers)


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


def note_job(folder: Path) -> None:
    """Note the folder of a job's run in the sweep's folder; nothing where no sweep is running."""
    job = Job.current()
    if job is not None:
        job.note_folder(folder)


def job_folders(sweep: Path) -> dict[int, Path]:
    """Number of each job of a sweep that has opened a run -> the run's folder."""
    return {int(file.name): Path(file.read_text()) for file in sorted((sweep / JOBS).glob("[0-9]*"))}


def sweep_runs(folder: Path) -> list[Path]:
    """The folders of a sweep's runs, in the order of its jobs; one that several jobs shared comes once."""
    return list(dict.fromkeys(job_folders(folder).values()))
