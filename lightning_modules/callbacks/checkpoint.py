"""Checkpoints that a killed run resumes from, and the orderly end of an interrupted one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer


class Interrupted(SystemExit):
    """The run was asked to stop (SIGTERM or Ctrl-C) and has written its checkpoint.

    Not an Exception, so that nothing on the way takes it for a failure of its own; and without a traceback.
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
        # Before Lightning sets its own handler, which would outlive the training if it were what is put back.
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Not earlier: Lightning's own handler of SIGTERM, which ends training amid a validation, is set before this.
        for number in self._handlers:
            signal.signal(number, self._request)
        loop = trainer.fit_loop.epoch_loop
        if loop.restarting:
            # Lightning expects checkpoints from within a batch and counts the batch that was about to begin as seen:
            # validations (and so early stopping) and the steps in the log would come one off.
            loop.batch_progress.total.ready = loop.batch_progress.total.started
            loop._batches_that_stepped -= 1

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        due = trainer.global_step > 0 and trainer.global_step % self.every_n_steps == 0
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(self.requested is not None, all=False):
            self.requested = self.requested or signal.SIGTERM  # another process was asked: all stop at this step
        if due or self.requested is not None:
            self._save(trainer)
        self.stop_if_requested(trainer)

    def stop_if_requested(self, trainer: Trainer) -> None:
        """Raise Interrupted if the process was asked to stop."""
        if self.requested is not None:
            name = signal.Signals(self.requested).name
            raise Interrupted(f"stopped by {name} at step {trainer.global_step}: continue with resume=auto")

    def _request(self, number: int, frame: Any) -> None:
        if self.requested is not None:
            raise KeyboardInterrupt  # asked twice: at once
        self.requested = number

    def _save(self, trainer: Trainer) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        try:
            trainer.save_checkpoint(partial, weights_only=False)  # optimizer and position too
            if trainer.is_global_zero:
                os.replace(partial, self.path)
        finally:
            partial.unlink(missing_ok=True)
        for logger in trainer.loggers:
            logger.after_save_checkpoint(self)
