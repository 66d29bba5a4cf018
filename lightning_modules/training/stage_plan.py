"""The stages of a run (config group `recovery`): which they are, and how they are built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_modules.config import Config, TrainerSettings
from lightning_modules.stages import STAGES
from lightning_modules.stages.stage import Stage, Workspace
from registries.counts import number_of

Plan = dict[str, dict[str, Any]]


def recovery_plan(cfg: Config) -> Plan:
    """Stage -> its keys, in order.

    `recovery=none` stands for `replacement.transfer_steps` of transfer, then `trainer.max_steps` of next-token
    training, each left out where it has no steps or nothing to train.
    """
    if cfg.recovery:
        return {name: dict(keys) for name, keys in cfg.recovery.items()}
    plan: Plan = {}
    if cfg.replacement is not None and cfg.replacement.transfer_steps:
        plan["transfer"] = {}
    operated = cfg.replacement is not None or cfg.placement is not None
    if trainer_steps(cfg.trainer) != 0 and (operated or not cfg.model.freeze):
        plan["next_token"] = {"train": "replaced" if cfg.model.freeze else "model"}
    return plan


def build_stages(cfg: Config, workspace: Workspace) -> dict[str, Stage]:
    """The stages of a config, with nothing left open."""
    blocks = 0 if workspace.train_blocks is None else len(workspace.train_blocks)
    return {
        name: STAGES.build(name, workspace=workspace, **filled_in(name, keys, cfg, blocks))
        for name, keys in recovery_plan(cfg).items()
    }


def step_sizes(cfg: Config) -> dict[str, int]:
    """Key that decides it -> blocks of one step of a stage."""
    sizes = {}
    for name, keys in recovery_plan(cfg).items():
        general = "replacement.transfer_batch_size" if STAGES.get(name).scope == "layers" else "dataset.batch_size"
        key = general if keys.get("batch_size") is None else f"recovery.{name}.batch_size"
        sizes[key] = filled_in(name, keys, cfg, 0)["batch_size"]
    return sizes


def trainer_steps(
    trainer: TrainerSettings, train_blocks: int = 0, batch_size: int = 1, block_size: int | None = None
) -> int | None:
    """Optimizer steps that `trainer.max_steps`, `trainer.max_epochs` and `trainer.max_tokens` ask for.

    Without the number of training blocks and their size, only 0 is sure; None where it depends on them.
    """
    limits = [trainer.max_steps] if trainer.max_steps >= 0 else []
    if trainer.max_tokens is not None and block_size is not None:
        limits.append(number_of(trainer.max_tokens) // (batch_size * block_size))
    if trainer.max_epochs and train_blocks:
        limits.append(math.ceil(trainer.max_epochs * train_blocks / batch_size))
    return min(limits, default=None)


def training_notes(name: str, stage: Stage, trainer: TrainerSettings, train_blocks: int) -> list[str]:
    """What a stage's training does otherwise than the trainer's keys may be read: passes, and early stopping."""
    return [
        *_passes_notes(name, stage, trainer.max_epochs, train_blocks),
        *_tokens_notes(name, stage, trainer),
        *_stopping_notes(name, stage, trainer),
    ]


def _passes_notes(name: str, stage: Stage, max_epochs: int | None, train_blocks: int) -> list[str]:
    trained = stage.steps * stage.batch_size
    if stage.scope != "model" or not max_epochs or not train_blocks or trained <= max_epochs * train_blocks:
        return []
    asked = max_epochs * train_blocks
    why = (
        f"every step has {stage.batch_size}; for exactly {max_epochs} take a batch size that divides {asked}"
        if stage.steps == math.ceil(asked / stage.batch_size)
        else "its own number of steps decides"
    )
    return [
        f"{name}: {stage.steps} steps of {stage.batch_size} blocks are {trained / train_blocks:.2f} passes over the "
        f"{train_blocks} training blocks, more than max_epochs={max_epochs}: {why}"
    ]


def _tokens_notes(name: str, stage: Stage, trainer: TrainerSettings) -> list[str]:
    if stage.scope != "model" or trainer.max_tokens is None:
        return []
    of_step = stage.batch_size * stage.workspace.block_size
    trained, asked = stage.steps * of_step, number_of(trainer.max_tokens)
    if trained > asked - of_step:
        return []
    return [
        f"{name}: {stage.steps} steps are {trained:,} tokens, fewer than trainer.max_tokens={trainer.max_tokens}: "
        "trainer.max_steps=-1 (and max_epochs=null) leaves the end to the tokens"
    ]


def _stopping_notes(name: str, stage: Stage, trainer: TrainerSettings) -> list[str]:
    patience, interval = trainer.early_stopping.patience, trainer.val_check_interval
    if not patience or not interval:
        return []
    if stage.scope != "model":
        return [f"{name}: early stopping does not watch this stage, whose layers learn by themselves"]
    longest = (stage.steps - 1) // (patience + 1)  # the first validation sets the mark
    if interval <= longest:
        return []
    remedy = f"set trainer.val_check_interval to at most {longest}" if longest else "train longer"
    return [
        f"{name}: early stopping cannot end it: patience={patience} takes {patience + 1} validations, which come every "
        f"{interval} steps, and there are {stage.steps} steps; {remedy}"
    ]


def filled_in(name: str, keys: Mapping[str, Any], cfg: Config, train_blocks: int) -> dict[str, Any]:
    """The keys of a stage, with the general settings where it has none of its own."""
    own = {key: value for key, value in keys.items() if value is not None}
    if STAGES.get(name).scope == "layers":
        general = {key: getattr(cfg.replacement, f"transfer_{key}") for key in ("steps", "lr", "batch_size")}
    else:
        general = {"lr": cfg.optimizer.arguments["lr"]}
        general["batch_size"] = cfg.dataset.batch_size * cfg.trainer.accumulate_grad_batches
        batch_size = own.get("batch_size", general["batch_size"])
        general["steps"] = trainer_steps(cfg.trainer, train_blocks, batch_size, cfg.dataset.block_size)
    return {**keys, **general, **own}
