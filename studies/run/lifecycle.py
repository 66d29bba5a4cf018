"""Opens, resumes and closes runs: folder, heartbeat, tracking and status, whatever happens inside."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from lightning_modules.config import Config
from lightning_modules.stopping import Interrupted, deferred, requested, stop_if_requested, stoppable
from registries.machines import hardware
from registries.memory_errors import lacks_memory
from registries.partial_files import clear_partial_files
from registries.registry import UserError
from studies.config.flat import flatten
from studies.run.code_version import revision
from studies.run.curve_file import CurveFile
from studies.run.files import disk_error, make_folder, write_text
from studies.run.fingerprint import fingerprint, versions
from studies.run.heartbeat import Heartbeat
from studies.run.jobs import swept_keys
from studies.run.relevant_config import relevant
from studies.run.results import UNFINISHED, at_work, find_run, worker
from studies.run.run_folder import RunFolder, clear_leftovers
from studies.run.run_name import run_name
from studies.run.trackers import build_tracker

TRACEBACK = "traceback.txt"


@dataclass
class RunRecord:
    """What a running study writes to.

    Attributes:
        folder: its folder; `folder.result` is what will be in `result.json`.
        loggers: of Lightning's trainers.
        heartbeat: samples memory.
    """

    folder: RunFolder
    loggers: list[Any] = field(default_factory=list)
    heartbeat: Heartbeat | None = None

    @property
    def metrics(self) -> dict[str, float]:
        return self.folder.result["metrics"]


def open_run(cfg: Config, dataset: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunFolder:
    """The folder that this config's run goes on in: a new one, or what `resume` or `skip_finished` say.

    Args:
        overrides: what was typed for the run, which is named by it.

    Raises:
        UserError: `resume` names a folder of another config.
    """
    output_dir, mark = Path(cfg.output_dir), fingerprint(cfg, dataset["sha256"])
    try:
        make_folder(output_dir)
        lock = FileLock(output_dir / "runs.lock")  # of several processes, one at a time chooses a run and marks it
        lock.acquire()
    except OSError as error:
        raise disk_error(error, output_dir / "runs.lock") from error
    try:
        _clear_once(output_dir, Path(cfg.cache_dir).expanduser())
        return _choose(cfg, dict(dataset), mark, list(overrides))
    finally:
        lock.release()


@lru_cache(maxsize=8)
def _clear_once(output_dir: Path, cache_dir: Path) -> None:
    """Remove what killed processes have left, at the first run of this process."""
    clear_leftovers(output_dir)
    with suppress(OSError):  # a cache that is read-only is used as it is
        clear_partial_files((cache_dir / "scores").glob("*.part*"))


def _choose(cfg: Config, dataset: dict[str, Any], mark: str, overrides: list[str]) -> RunFolder:
    """The folder of the run, marked as the work of this process."""
    output_dir, about = Path(cfg.output_dir), {"config": cfg.plain, "fingerprint": mark, "dataset": dataset}
    about |= {"baseline": {}, "versions": versions(cfg), "mlflow_run_id": None}
    about |= {"name": run_name(cfg, overrides, swept_keys()), "overrides": overrides, "hardware": hardware()}
    about |= {"revision": revision()}
    path = find_run(output_dir, mark, ("finished",)) if cfg.skip_finished else None
    if path is not None:
        folder = RunFolder.open(path)
        folder.result = {**about, **folder.result, "status": "skipped"}
        return folder
    if cfg.resume == "auto":
        path = find_run(output_dir, mark, UNFINISHED)
    elif cfg.resume != "never":
        path = Path(cfg.resume)
        result = RunFolder.open(path).result
        _require_same(result, cfg, mark)
        if at_work(result):
            raise UserError(f"resume={path} is still at work, {worker(path, result)}")
    if path is not None:
        folder = RunFolder.open(path)
        folder.result = {**about, **folder.result}  # what its file lacks is the same for the same fingerprint
        if folder.result["status"] != "finished":
            folder.result["status"] = "running"
            folder.write()
        return folder
    folder = RunFolder.create(output_dir, **about)
    write_text(folder.path / "config.yaml", yaml.safe_dump(dict(cfg.plain), sort_keys=False))
    return folder


def _require_same(result: Mapping[str, Any], cfg: Config, mark: str) -> None:
    if result.get("fingerprint") == mark:
        return
    if "config" not in result:
        raise UserError(f"resume={cfg.resume}: its result.json is damaged: it has no 'config'; use resume=never")
    old, new = flatten(relevant(result["config"])), flatten(relevant(cfg.plain))
    changed = [
        f"{key}={old.get(key)} there, {new.get(key)} here"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    why = "; ".join(changed) or "its data or the code have changed since"
    raise UserError(f"resume={cfg.resume} is a run of another config: {why}. Use its config, or resume=never")


@contextmanager
def recording(folder: RunFolder, cfg: Config) -> Iterator[RunRecord]:
    """Run a study's body; its end, good or bad, is written to the folder and to the tracking store.

    Raises:
        Interrupted: the process was asked to stop, also where that came out of the body as another error.
    """
    record, tracker, status = RunRecord(folder, [CurveFile(folder.path)]), None, "failed"
    result = folder.result
    with stoppable():
        try:
            stop_if_requested()
            with Heartbeat(folder) as record.heartbeat:  # first, since a store may take its time to answer
                if cfg.tracking is not None:
                    tracker = build_tracker(cfg.tracking).open(folder.path, Path(cfg.output_dir))
                    record.loggers.append(tracker)
                folder.write()
                yield record
            stop_if_requested()
            status = "finished"
            result.pop("error", None)
            (folder.path / TRACEBACK).unlink(missing_ok=True)
        except BaseException as error:
            cause = _outcome(error, folder)
            status = status_of(cause)
            result["error"] = f"{type(cause).__name__}: {cause}"
            if status != "killed" and not isinstance(cause, UserError):
                with suppress(UserError):  # of a full disk, which must not take the place of what went wrong
                    write_text(folder.path / TRACEBACK, traceback.format_exc())
            if cause is not error:
                raise cause from error
            raise
        finally:
            with deferred():  # a second signal ends this too
                result["status"] = status
                folder.write()
                if tracker is not None:
                    tracker.close(folder)
        stop_if_requested()  # while that was written


def _outcome(error: BaseException, folder: RunFolder) -> BaseException:
    """What an error of a study's body is to be told as."""
    if requested() is not None:
        stop = error if isinstance(error, Interrupted) else Interrupted(requested())
        return Interrupted(stop.number, f"{stop}: continue with resume=auto")
    return disk_error(error, folder.path / "checkpoints") if isinstance(error, OSError) else error


def status_of(error: BaseException) -> str:
    """`oom`, `nan`, `killed` or `failed`."""
    from lightning_modules.causal_lm import NonFiniteLoss

    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return "killed"
    if isinstance(error, NonFiniteLoss):
        return "nan"
    return "oom" if lacks_memory(error) else "failed"
