"""Opens, resumes and closes runs: folder, heartbeat, tracking and status, whatever happens inside."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from registries.registry import UserError
from studies.curves import CurveFile
from studies.fingerprint import fingerprint, relevant, versions
from studies.run_folder import UNFINISHED, Heartbeat, RunFolder, at_work, disk_error, find_run, write_text
from studies.tracking import flatten, open_tracking

TRACEBACK = "traceback.txt"


@dataclass
class Record:
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


def open_run(cfg: Mapping[str, Any], dataset: Mapping[str, Any]) -> RunFolder:
    """The folder that this config's run goes on in: a new one, or what `resume` or `skip_finished` say.

    Raises:
        UserError: `resume` names a folder of another config.
    """
    output_dir, mark = Path(cfg["output_dir"]), fingerprint(cfg, dataset["sha256"])
    path = find_run(output_dir, mark, ("finished",)) if cfg["skip_finished"] else None
    if path is not None:
        folder = RunFolder.open(path)
        folder.result["status"] = "skipped"
        return folder
    if cfg["resume"] == "auto":
        path = find_run(output_dir, mark, UNFINISHED)
    elif cfg["resume"] != "never":
        path = Path(cfg["resume"])
        result = RunFolder.open(path).result
        _require_same(result, cfg, mark)
        if at_work(result):
            raise UserError(f"resume={path} is still at work, in process {result['pid']}")
    if path is not None:
        folder = RunFolder.open(path)
        if folder.result["status"] != "finished":
            folder.result["status"] = "running"
            folder.write()
        return folder
    folder = RunFolder.create(
        output_dir,
        f"{_model_label(cfg['model'])}-{_operations(cfg)}",
        config=cfg,
        fingerprint=mark,
        dataset=dict(dataset),
        versions=versions(),
        mlflow_run_id=None,
    )
    write_text(folder.path / "config.yaml", yaml.safe_dump(dict(cfg), sort_keys=False))
    return folder


def _model_label(model: Mapping[str, Any]) -> str:
    """The model's name, or that of the folder or hub repository that was given in its place."""
    return Path(model.get("path") or model["name"]).name


def _operations(cfg: Mapping[str, Any]) -> str:
    """What is done to the model, in a word or two."""
    names = [cfg[group]["name"] for group in ("replacement", "placement", "adapter", "compressor")]
    if cfg["source"]["name"] != "none":
        names.append(f"from-{_model_label(cfg['source'])}")
    return "-".join(name for name in names if name != "none") or "none"


def _require_same(result: Mapping[str, Any], cfg: Mapping[str, Any], mark: str) -> None:
    if result["fingerprint"] == mark:
        return
    old, new = flatten(relevant(result["config"])), flatten(relevant(cfg))
    changed = [
        f"{key}={old.get(key)} there, {new.get(key)} here"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    why = "; ".join(changed) or "its data or the code have changed since"
    raise UserError(f"resume={cfg['resume']} is a run of another config: {why}. Use its config, or resume=never")


@contextmanager
def recording(folder: RunFolder, cfg: Mapping[str, Any]) -> Iterator[Record]:
    """Run a study's body; its end, good or bad, is written to the folder and to the tracking store."""
    record, tracker, status = Record(folder, [CurveFile(folder.path)]), None, "failed"
    result = folder.result
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        tracker = open_tracking(cfg["tracking"], folder.path, Path(cfg["output_dir"]))
        if tracker is not None:
            record.loggers.append(tracker)
        folder.write()
        with Heartbeat(folder) as record.heartbeat:
            yield record
        status = "finished"
        result.pop("error", None)
        (folder.path / TRACEBACK).unlink(missing_ok=True)
    except BaseException as error:
        status = status_of(error)
        told = disk_error(error, folder.path / "checkpoints") if isinstance(error, OSError) else error
        result["error"] = f"{type(told).__name__}: {told}"
        if status != "killed" and not isinstance(told, UserError):
            with suppress(UserError):  # of a full disk, which must not take the place of what went wrong
                write_text(folder.path / TRACEBACK, traceback.format_exc())
        if told is not error:
            raise told from error
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
        result["status"] = status
        folder.write()
        if tracker is not None:
            tracker.close(folder)


def status_of(error: BaseException) -> str:
    """`oom`, `nan`, `killed` or `failed`."""
    import torch

    from lightning_modules.causal_lm import NonFiniteLoss

    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return "killed"
    if isinstance(error, NonFiniteLoss):
        return "nan"
    no_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
    return "oom" if no_memory else "failed"


def _terminate(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)
