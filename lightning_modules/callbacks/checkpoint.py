"""Checkpoints that a killed run resumes from, and the orderly end of an interrupted one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer


class Interrupted(BaseException):
    """The run was asked to stop (SIGTERM or Ctrl-C) and has written its checkpoint.

    Not an Exception, so that nothing on the way takes it for a failure of its own.
    """


class StepCheckpoint(Callback):
    """Writes `<folder>/last.ckpt` every `every_n_steps` optimizer steps, and when the process is asked to stop.

    It is written before a step begins, hence after the step before it and after the validation that followed: the
    loop, early stopping included, continues exactly there. Written aside and renamed: a kill leaves the one before.

    Args:
        folder: of the stage's checkpoint.
        every_n_steps: steps between two checkpoints; a kill loses at most so many.
    """

    def __init__(self, folder: Path, every_n_steps: int):
        self.path, self.every_n_steps = folder / "last.ckpt", every_n_steps
        self.requested: int | None = None
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self._resumed_at: int | None = None

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._request)

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        due = trainer.global_step > 0 and trainer.global_step % self.every_n_steps == 0
        if due or self.requested is not None:
            self._save(trainer)
        if self.requested is not None:
            raise Interrupted(f"stopped by {signal.Signals(self.requested).name} at step {trainer.global_step}")

    def _request(self, number: int, frame: Any) -> None:
        if self.requested is not None:
            raise KeyboardInterrupt  # asked twice: at once
        self.requested = number

    def _save(self, trainer: Trainer) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        os.replace(partial, self.path)
