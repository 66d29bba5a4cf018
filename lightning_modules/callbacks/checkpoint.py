"""Checkpoints that a killed run resumes from, and the orderly end of an interrupted one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from lightning_modules import stopping
from lightning_modules.stopping import Interrupted
from registries.partial_files import partial_file


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

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Again, since Lightning has put its own handler of SIGTERM, which ends training amid a validation, before ours.
        stopping.handle_signals()
        loop = trainer.fit_loop.epoch_loop
        if loop.restarting:
            # Lightning expects checkpoints from within a batch and counts the batch that was about to begin as seen:
            # validations (and so early stopping) and the steps in the log would come one off.
            loop.batch_progress.total.ready = loop.batch_progress.total.started
            loop._batches_that_stepped -= 1

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        due = trainer.global_step > 0 and trainer.global_step % self.every_n_steps == 0
        if trainer.world_size > 1:
            asked = stopping.requested() is not None
            if trainer.strategy.reduce_boolean_decision(asked, all=False) and not asked:
                stopping.request(signal.SIGTERM)  # another process was asked: all stop at this step
        if due or stopping.requested() is not None:
            self._save(trainer)
        self.stop_if_requested(trainer)

    def stop_if_requested(self, trainer: Trainer) -> None:
        """Raise Interrupted if the process was asked to stop."""
        number = stopping.requested()
        if number is not None:
            name = signal.Signals(number).name
            raise Interrupted(number, f"stopped by {name} at step {trainer.global_step}")

    def _save(self, trainer: Trainer) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_file(self.path)
        try:
            trainer.save_checkpoint(partial, weights_only=False)  # optimizer and position too
            if trainer.is_global_zero:
                os.replace(partial, self.path)
        finally:
            partial.unlink(missing_ok=True)
        for logger in trainer.loggers:
            logger.after_save_checkpoint(self)
