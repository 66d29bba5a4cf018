"""The stages of a run (config group `recovery`): which they are, and how they are built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_modules.config import Config, TrainerSettings
from lightning_modules.stages import STAGES
from lightning_modules.stages.stage import Stage, Workspace
from registries.counts import number_of
from registries.registry import UserError

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
    operated = any(part is not None for part in (cfg.replacement, cfg.placement, cfg.expansion))
    if trainer_steps(cfg.trainer) != 0 and (operated or not cfg.model.freeze):
        partly = cfg.model.freeze if cfg.expansion is None else cfg.expansion.mode == "freeze"
        plan["next_token"] = {"train": "replaced" if partly else "model"}
    return plan


def build_stages(cfg: Config, workspace: Workspace) -> dict[str, Stage]:
    """The stages of a config, with nothing left open."""
    return {
        name: STAGES.build(name, workspace=workspace, **filled_in(name, keys, cfg, workspace))
        for name, keys in recovery_plan(cfg).items()
    }


def step_sizes(cfg: Config) -> dict[str, int]:
    """Key that decides it -> blocks of one step of a stage."""
    sizes = {}
    for name, keys in recovery_plan(cfg).items():
        general = "replacement.transfer_batch_size" if STAGES.get(name).scope == "layers" else "dataset.batch_size"
        key = general if keys.get("batch_size") is None else f"recovery.{name}.batch_size"
        sizes[key] = filled_in(name, keys, cfg)["batch_size"]
    return sizes


def trainer_steps(
    trainer: TrainerSettings,
    train_blocks: int = 0,
    batch_size: int = 1,
    block_size: int | None = None,
    flops: float | None = None,
) -> int | None:
    """Optimizer steps that `trainer.max_steps`, `max_epochs`, `max_tokens` and `max_flops` ask for.

    Without the number of training blocks, their size and the cost of a token (`flops`), only 0 is sure; None where it
    depends on them.
    """
    limits = [trainer.max_steps] if trainer.max_steps >= 0 else []
    if block_size is not None:
        of_step = batch_size * block_size
        if trainer.max_tokens is not None:
            limits.append(number_of(trainer.max_tokens) // of_step)
        if trainer.max_flops is not None and flops is not None:
            limits.append(_steps_for(trainer.max_flops, of_step * flops))
    if trainer.max_epochs and train_blocks:
        limits.append(math.ceil(trainer.max_epochs * train_blocks / batch_size))
    return min(limits, default=None)


def _steps_for(budget: float, of_step: float) -> int:
    if budget < of_step:
        raise UserError(
            f"trainer.max_flops={budget:g} is less than one step, which takes {of_step:.3g} floating-point operations: "
            "raise it, or take smaller steps (dataset.batch_size, dataset.block_size)"
        )
    return int(budget // of_step)


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
        "trainer.max_steps=-1 (and max_epochs=null max_flops=null) leaves the end to the tokens"
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


def filled_in(name: str, keys: Mapping[str, Any], cfg: Config, workspace: Workspace | None = None) -> dict[str, Any]:
    """The keys of a stage, with the general settings where it has none of its own.

    Without the workspace of a run, a number of steps that depends on it stays open.
    """
    own = {key: value for key, value in keys.items() if value is not None}
    if STAGES.get(name).scope == "layers":
        general = {key: getattr(cfg.replacement, f"transfer_{key}") for key in ("steps", "lr", "batch_size")}
    else:
        general = {"lr": cfg.optimizer.arguments["lr"]}
        general["batch_size"] = cfg.dataset.batch_size * cfg.trainer.accumulate_grad_batches
        batch_size = own.get("batch_size", general["batch_size"])
        general["steps"] = _steps(cfg, batch_size, workspace)
    return {**keys, **general, **own}


def _steps(cfg: Config, batch_size: int, workspace: Workspace | None) -> int | None:
    """Steps of a stage that the trainer's keys decide, and those that an earlier training's operations allow."""
    if workspace is None:
        return trainer_steps(cfg.trainer, block_size=cfg.dataset.block_size, batch_size=batch_size)
    blocks = 0 if workspace.train_blocks is None else len(workspace.train_blocks)
    steps = trainer_steps(cfg.trainer, blocks, batch_size, cfg.dataset.block_size, workspace.flops)
    if steps is None or not workspace.earlier_flops:
        return steps
    return steps + round(workspace.earlier_flops / (batch_size * cfg.dataset.block_size * workspace.flops))
