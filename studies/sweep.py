"""The jobs of a sweep, one after the other, and its end.

Every job notes its run's folder in the sweep's folder (`studies.run.jobs`). While jobs end, `summary.csv` (a line for
each run) and `summary.json` (a table with a line for each setting, and what failed) are written there. When the last
job has ended, Hydra calls `Summary`, which prints the table and draws figures. The tracking store has the sweep as a
run that is the parent of the jobs' runs.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

from lightning_modules.processes import is_first, process_count
from lightning_modules.stopping import Interrupted, stop_if_requested
from registries.registry import UserError
from studies.memory_retry import run_with_retries
from studies.progress import say
from studies.report.sweep_summary import grow, summarise
from studies.run.files import write_text
from studies.run.jobs import STOPPED, Job, cause, claim_for, ended_jobs, failures
from studies.run.jobs_at_work import BrokenOff, count_lost, ended_their_process, is_at_work, job_at_work
from studies.run.sweep_account import SweepAccount

WAIT_SECONDS = 2.0  # between two looks at a job of another process

postponed: list[Callable[[], None]] = []  # jobs of this process's sweep that come last
begun: list[Path] = []  # the folder of the sweep that this process has started


def run_in_sweep(cfg: Any, run: Callable[[Any, Sequence[str]], dict[str, Any]]) -> float:
    """Run a job of a sweep; its failure is noted and does not end the sweep, unless it is to stop at one.

    A job that ended its process at an earlier start (by an abort, or for lack of memory) would end every start of the
    sweep before the jobs behind it are run: it is put off until these are done.

    Returns:
        The validation loss; infinity for a job that failed or was put off.
    """
    from hydra.core.hydra_config import HydraConfig

    job, mark = Job.current(), _mark(cfg)
    while is_at_work(job):  # since before the sweep went on after a process was lost
        time.sleep(WAIT_SECONDS)
    loss = job.loss()
    if loss is not None:
        return loss
    if (job.sweep / STOPPED).is_file():  # by a job of another process
        return math.inf
    if _in_turn() and mark in ended_their_process(job.sweep):
        say(f"this job ended its process at an earlier start: it comes last ({' '.join(job.overrides)})")
        hydra = HydraConfig.instance().cfg

        def later() -> None:
            HydraConfig.instance().cfg = hydra
            _attempt(cfg, run, job, mark)

        postponed.append(later)
        return math.inf
    try:
        return _attempt(cfg, run, job, mark)
    except BrokenOff:  # it is started again
        return math.inf


def _attempt(cfg: Any, run: Callable[[Any, Sequence[str]], dict[str, Any]], job: Job, mark: str) -> float:
    _collect()
    loss = math.inf
    with job_at_work(job, mark):
        say(_progress(job))
        try:
            result = run_with_retries(cfg, job.overrides, run, lambda text: _tell_retry(job, text))
            loss = result["metrics"].get("val/loss", math.inf)
        except (Exception, SystemExit) as error:
            stop_if_requested()  # a library may have made this error of the signal
            if isinstance(error, Interrupted):
                raise
            job.note_failure(error)
            stopping = _stops_at(len(failures(job.sweep)), cfg)
            say(f"this job failed, the sweep {'stops' if stopping else 'goes on'}: {cause(error)}")
            if stopping:  # at once: an exception would end the sweep only after its last job
                write_text(job.sweep / STOPPED, cause(error))
                postponed.clear()
                if is_first():
                    end_sweep(job.sweep, cfg)
                sys.exit(1)
            traceback.clear_frames(error.__traceback__)  # it holds the job's model, and so its memory
    if is_first():
        grow(job.sweep, cfg)
    return loss


def _collect() -> None:
    """Free what the job before has left: a model and its trainer hold each other, and would count as this job's memory.

    Modules are looked through once: they are most of what there is, and take 0.3 s for each job.
    """
    gc.collect()
    if "lightning" in sys.modules and not gc.get_freeze_count():  # after the first job, which imports the most
        gc.freeze()


def _stops_at(count: int, cfg: Any) -> bool:
    """Whether a sweep in which so many jobs failed ends."""
    if process_count() > 1:  # the other processes may be elsewhere in the job
        return True
    return cfg["on_failure"] == "stop" or (cfg["max_failures"] is not None and count >= cfg["max_failures"])


def _tell_retry(job: Job, text: str) -> None:
    say(text)
    job.note_halving(text)


def _progress(job: Job) -> str:
    """Which job this is of how many, what is its own, and about how long the others will take."""
    account = SweepAccount.read(job.sweep)
    keys = None if account is None else account.keys
    own = [line for line in job.overrides if keys is None or line.partition("=")[0].lstrip("+") in keys]
    of_all = f" of {account.jobs}" if account is not None and account.jobs else ""
    seconds = None if account is None else account.seconds_left(ended_jobs(job.sweep))
    left = "" if seconds is None else f", about {timedelta(seconds=round(seconds))} left"
    return f"job {job.number + 1}{of_all}{left}: {' '.join(own)}"


def end_sweep(folder: Path, cfg: Mapping[str, Any]) -> None:
    """Run what was put off, write the summary, and end the process with status 1 if a job failed."""
    begun.clear()
    waiting, postponed[:] = list(postponed), []
    if waiting:
        summarise(folder, cfg)  # what is put off may end the process once more
    for attempt in waiting:
        attempt()
    summarise(folder, cfg)
    if failures(folder):
        sys.exit(1)


def sweep_to_go_on_with() -> Path | None:
    """The folder of this process's sweep, if it broke off because processes of its jobs were lost."""
    count = count_lost(begun[0]) if begun else 0
    if not count:
        return None
    say(f"jobs whose process ended without a word: {count}; the sweep goes on with the jobs that have not ended")
    return begun[0]


def _in_turn() -> bool:
    """Whether the jobs of this sweep run one after the other in this process, and none waits for another's loss."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    plain = (hydra.launcher["_target_"], hydra.sweeper["_target_"])
    return process_count() == 1 and all(name.rpartition(".")[2].startswith("Basic") for name in plain)


def _mark(cfg: Any) -> str:
    """What two jobs that compute the same have in common, as far as it can be known before any data is read."""
    from lightning_modules.config import as_plain
    from studies.run.relevant_config import relevant

    return hashlib.sha256(json.dumps(relevant(as_plain(cfg)), sort_keys=True).encode()).hexdigest()[:16]


class Summary(Callback):
    """Hydra's callback for the start and the end of a sweep.

    Args:
        jobs: how many there are; None where the sweeper decides it.
        keys: that are swept over.
    """

    def __init__(self, jobs: int | None = None, keys: Sequence[str] = ()):
        self.jobs, self.keys = jobs, list(keys)

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        from omegaconf import OmegaConf

        from studies.config.launch import exit_with

        if config.hydra.sweeper is None:  # which Hydra refuses next, and nothing is to be written for it
            return
        if begun == [Path(config.hydra.sweep.dir)]:  # it goes on
            return
        try:
            claim_for(config)  # and write what Hydra writes there first, for which it has no message on a full disk
            write_text(Path(config.hydra.sweep.dir) / "multirun.yaml", OmegaConf.to_yaml(config))
            SweepAccount.begin(Path(config.hydra.sweep.dir), self.jobs, self.keys)
            begun[:] = [Path(config.hydra.sweep.dir)]
        except UserError as error:
            exit_with(error)

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        end_sweep(Path(config.hydra.sweep.dir), config)
