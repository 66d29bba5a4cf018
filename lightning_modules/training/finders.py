"""Lightning's searches for a learning rate and a batch size, for the stage that a module is in."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader

from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.config import TrainerSettings
from lightning_modules.training.trainer import quiet, trainer_of
from registries import UserError

LOWEST_RATE, HIGHEST_RATE = 1e-6, 1.0
TRIALS = 100  # steps, each at a higher rate
STEPS_OF_A_SIZE = 3


def find_rate(module: CausalLMModule, loader: DataLoader, settings: TrainerSettings) -> float:
    """The rate at which the loss falls fastest while the rate grows from step to step; the model stays as it is.

    Args:
        loader: of `TRIALS` steps.

    Raises:
        UserError: the loss does not fall at any rate.
    """
    rates = {"min_lr": LOWEST_RATE, "max_lr": HIGHEST_RATE, "num_training": TRIALS, "update_attr": False}
    finder = _searching(settings, lambda tuner: tuner.lr_find(module, loader, **rates))
    rate = None if finder is None else finder.suggestion()
    if rate is None:
        raise UserError("trainer.find_lr=true found no rate at which the loss falls: set optimizer.lr")
    return float(rate)


def find_batch_size(
    module: CausalLMModule, loader: Callable[[int], DataLoader], settings: TrainerSettings, largest: int
) -> int:
    """The largest power of two of blocks whose steps fit into memory, at most `largest`; the model stays as it is.

    Args:
        loader: blocks of a step -> loader of a few such steps.
    """
    stage = module.stage
    workspace, batch_size = stage.workspace, stage.batch_size

    def load(blocks: int) -> DataLoader:
        stage.batch_size, stage.workspace = blocks, replace(workspace, batch_size=blocks)  # one pass a step
        return loader(blocks)

    module.batch_size = 1
    module.train_dataloader, module.val_dataloader = lambda: load(module.batch_size), lambda: []
    try:
        options = {"steps_per_trial": STEPS_OF_A_SIZE, "init_val": 1, "max_val": largest}
        return _searching(settings, lambda tuner: tuner.scale_batch_size(module, **options))
    finally:
        del module.batch_size, module.train_dataloader, module.val_dataloader
        stage.workspace, stage.batch_size = workspace, batch_size


def _searching(settings: TrainerSettings, search: Callable[[Tuner], Any]) -> Any:
    with quiet(), tempfile.TemporaryDirectory() as folder:
        options = {"max_steps": TRIALS, "max_epochs": None, "limit_val_batches": 0, "num_sanity_val_steps": 0}
        return search(Tuner(trainer_of(settings, logger=False, default_root_dir=folder, devices=1, **options)))
