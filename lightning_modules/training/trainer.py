"""Lightning trainers for scoring a module and for training one stage of it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from torch.utils.data import DataLoader

from lightning_modules.callbacks.checkpoint import StepCheckpoint
from lightning_modules.callbacks.early_stopping import BestWeights
from lightning_modules.callbacks.throughput import Throughput
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.config import TrainerSettings
from lightning_modules.processes import process_count
from lightning_modules.stopping import deferred, stoppable

# Keys of the config group `trainer` that are handed to Lightning's Trainer as they are.
LIGHTNING_KEYS = (
    "accelerator",
    "devices",
    "precision",
    "log_every_n_steps",
    "enable_progress_bar",
    "deterministic",
    "profiler",
    "detect_anomaly",
    "benchmark",
)
# Modules of Lightning that log remarks.
REMARKING = ("utilities.rank_zero", "trainer.connectors.checkpoint_connector", "tuner.lr_finder")


def evaluate(module: CausalLMModule, loader: DataLoader, settings: TrainerSettings) -> dict[str, float]:
    """Score the module on a loader: loss, ppl, accuracy, bpb, and `seconds` and `tokens_per_s`.

    Everything that is ever compared (baseline, swap, control, final score) goes through here.
    """
    clock = Throughput()
    with quiet():
        trainer = trainer_of(settings, logger=False, callbacks=[clock], devices=1)
        (scores,) = trainer.validate(module, loader, verbose=False)
    scores = {name.removeprefix("val/"): value for name, value in scores.items()}
    return {**scores, "seconds": clock.seconds, "tokens_per_s": clock.tokens_per_s}


def fit(
    module: CausalLMModule,
    loader: DataLoader,
    val_loader: DataLoader,
    settings: TrainerSettings,
    folder: Path,
    logger: Any = False,
    callbacks: Sequence[Callback] = (),
) -> Throughput:
    """Train the module's current stage, from `<folder>/last.ckpt` on where there is one.

    Args:
        folder: where this stage's checkpoint lies.

    Returns:
        How long the steps took, without validation.
    """
    clock, checkpoint = Throughput(), StepCheckpoint(folder, settings.checkpoint_every_n_steps)
    stopping, interval = settings.early_stopping, settings.val_check_interval
    stops_early = stopping.patience and module.stage.scope == "model"
    best = [BestWeights(stopping.patience, stopping.min_delta)] if stops_early else []
    with quiet(), stoppable(), deferred():  # the checkpoint callback stops it, at the next step
        trainer = trainer_of(
            settings,
            strategy="ddp" if process_count() > 1 else "auto",
            num_nodes=max(1, process_count() // settings.devices),
            logger=logger,
            callbacks=[checkpoint, *best, *callbacks, clock],  # the clock last: it times the step alone
            max_steps=module.stage.steps,
            max_epochs=1,  # the loader goes round for as long as there are steps
            val_check_interval=interval or 1.0,
            check_val_every_n_epoch=None if interval else 1,
            limit_val_batches=None if interval else 0,
            num_sanity_val_steps=0,
        )
        resume = checkpoint.path if checkpoint.path.is_file() else None
        trainer.fit(module, loader, val_loader, ckpt_path=resume, weights_only=True)
        checkpoint.stop_if_requested(trainer)  # during the last step, or the validation after it
    return clock


def trainer_of(settings: TrainerSettings, **own: Any) -> Trainer:
    # With deterministic algorithms, torch also fills all memory that it allocates, which takes 5 % of a training step
    # and only shows where something reads what was never written.
    torch.utils.deterministic.fill_uninitialized_memory = False
    return Trainer(
        **{**{key: getattr(settings, key) for key in LIGHTNING_KEYS}, **own},
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's remarks on devices, and on what is so on purpose."""
    loggers = [logging.getLogger(f"lightning.pytorch.{name}") for name in REMARKING]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    on_purpose = ("dataloader is not resumable", "does not have many workers", "in eval mode", "treespec, LeafSpec")
    on_purpose += ("smaller than the logging interval",)  # a short training has few points on its curve
    on_purpose += ("The `srun` command is available",)  # a launcher starts one process for each job
    try:
        with warnings.catch_warnings():
            for text in on_purpose:
                warnings.filterwarnings("ignore", message=f"(?s).*{text}")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
