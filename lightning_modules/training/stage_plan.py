"""The stages of a run (config group `recovery`): which they are, what is wrong with them, and how they are built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_modules.options import model_loader
from lightning_modules.stages import STAGES
from lightning_modules.stages.stage import Stage, Workspace
from registries import ATTENTION
from registries.architectures import architecture_of, resolve_roles
from registries.layers import resolve_layers
from registries.model_shape import shape_of
from registries.models.model_folder import path_errors
from registries.models.pretrained import PretrainedModel
from registries.registry import UserError

Plan = dict[str, dict[str, Any]]


def recovery_plan(cfg: Mapping[str, Any]) -> Plan:
    """Stage -> its keys, in order.

    `recovery=none` stands for `replacement.transfer_steps` of transfer, then `trainer.max_steps` of next-token
    training, each left out where it has no steps or nothing to train.
    """
    if cfg["recovery"]:
        return {name: dict(keys) for name, keys in cfg["recovery"].items()}
    plan: Plan = {}
    operated, placed = cfg["replacement"]["name"] != "none", cfg["placement"]["name"] != "none"
    frozen = cfg["model"]["freeze"]
    if operated and cfg["replacement"]["transfer_steps"]:
        plan["transfer"] = {}
    if trainer_steps(cfg["trainer"]) != 0 and (operated or placed or not frozen):
        plan["next_token"] = {"train": "replaced" if frozen else "model"}
    return plan


def build_stages(cfg: Mapping[str, Any], workspace: Workspace) -> dict[str, Stage]:
    """The stages of a config, with nothing left open."""
    blocks = 0 if workspace.train_blocks is None else len(workspace.train_blocks)
    return {
        name: STAGES.build(name, workspace=workspace, **_filled_in(name, keys, cfg, blocks))
        for name, keys in recovery_plan(cfg).items()
    }


def step_sizes(cfg: Mapping[str, Any]) -> dict[str, int]:
    """Key that decides it -> blocks of one step of a stage."""
    sizes = {}
    for name, keys in recovery_plan(cfg).items():
        general = "replacement.transfer_batch_size" if STAGES.get(name).scope == "layers" else "dataset.batch_size"
        key = general if keys.get("batch_size") is None else f"recovery.{name}.batch_size"
        sizes[key] = _filled_in(name, keys, cfg, 0)["batch_size"]
    return sizes


def check_recovery(cfg: Mapping[str, Any]) -> list[str]:
    """What is wrong with `cfg.recovery`, for a model and a replacement that are right."""
    errors = []
    for name, keys in (cfg["recovery"] or {}).items():
        wrong = STAGES.check(name, keys, {"workspace"})
        errors += wrong or [f"recovery.{name}{message}" for message in _stage_errors(cfg, name, keys)]
    if cfg["trainer"]["gradient_checkpointing"] and not _allows_checkpointing(cfg):
        errors.append(
            f"trainer.gradient_checkpointing=true: replacement {cfg['replacement']['name']!r} forbids it, since it "
            "does not compute the same twice; set it to false"
        )
    return errors


def _stage_errors(cfg: Mapping[str, Any], name: str, keys: Mapping[str, Any]) -> list[str]:
    """What is wrong with a stage whose keys have the right types, each starting with what follows its name."""
    errors, operated = [], cfg["replacement"]["name"] != "none"
    stage, placed = STAGES.get(name), cfg["placement"]["name"] != "none"
    trains_lora = placed and keys.get("train") == "replaced"
    if placed and name == "lora":
        errors.append(
            f" adds LoRA a second time, beside placement={cfg['placement']['name']}: leave one of them out; next_token "
            "and kl train what is placed"
        )
    elif not (operated or trains_lora) and (
        stage.scope == "layers" or "replaced" in (keys.get("train"), keys.get("layers"))
    ):
        also = {"train": "train=model", "layers": "layers=all"}
        others = "".join(f", or {option}" for key, option in also.items() if keys.get(key) == "replaced")
        errors.append(f" trains nothing: no layer is replaced. Choose a replacement{others}")
    elif not operated and stage.imitates(keys):
        other = " or a teacher" if "teacher" in keys else " or objective=next_token" if "objective" in keys else ""
        errors.append(f" imitates the untouched model, which this is: choose a replacement{other}")
    elif _filled_in(name, keys, cfg, 0)["steps"] == 0:
        general = "replacement.transfer_steps" if stage.scope == "layers" else "trainer.max_steps"
        errors.append(f".steps=null takes {general}, which is 0: the stage trains nothing")
    if keys.get("attention_weight") and operated and not hasattr(_core(cfg), "weights"):
        errors.append(
            f".attention_weight: {cfg['replacement']['name']!r} does not tell its attention weights; set it to 0"
        )
    return errors + _lora_errors(cfg, keys) + _teacher_errors(cfg, keys)


def _lora_errors(cfg: Mapping[str, Any], keys: Mapping[str, Any]) -> list[str]:
    config, errors = model_loader(cfg).config(), []
    if config is None or "roles" not in keys:
        return []
    shape = shape_of(config)
    try:
        resolve_roles(architecture_of(shape.family), keys["roles"])
    except UserError as error:
        errors += [f".roles: {message}" for message in error.messages]
    try:
        if keys["layers"] != "replaced":
            resolve_layers(keys["layers"], shape.num_layers)
    except UserError as error:
        errors += [f".{message}; or replaced" for message in error.messages]
    return errors


def _teacher_errors(cfg: Mapping[str, Any], keys: Mapping[str, Any]) -> list[str]:
    if keys.get("teacher") is None:
        return []
    wrong = path_errors(keys["teacher"])
    if wrong:
        return [message.replace("model.path", ".teacher", 1) for message in wrong]
    ours, theirs = model_loader(cfg).config(), PretrainedModel(keys["teacher"]).config()
    if theirs is None or ours is None:  # a hub model that is not here: told when it is loaded
        return []
    try:
        sizes = shape_of(theirs).vocab_size, shape_of(ours).vocab_size
    except UserError as error:
        return [f".teacher={keys['teacher']}: {message}" for message in error.messages]
    limit, block_size = shape_of(theirs).limit, cfg["dataset"]["block_size"]
    if limit is not None and block_size > limit.tokens:
        return [f".teacher={keys['teacher']}: dataset.block_size={block_size} is longer than {limit.words}"]
    if sizes[0] == sizes[1]:
        return []
    return [
        f".teacher={keys['teacher']} has a vocabulary of {sizes[0]} tokens, the model has {sizes[1]}: take one "
        "with the same tokenizer"
    ]


def _core(cfg: Mapping[str, Any]) -> Any:
    return ATTENTION.get(cfg["replacement"]["name"])


def _allows_checkpointing(cfg: Mapping[str, Any]) -> bool:
    return cfg["replacement"]["name"] == "none" or getattr(_core(cfg), "repeatable", True)


def trainer_steps(trainer: Mapping[str, Any], train_blocks: int = 0, batch_size: int = 1) -> int | None:
    """Optimizer steps that `trainer.max_steps` and `trainer.max_epochs` ask for.

    Without the number of training blocks, only 0 is sure; None where it depends on them.
    """
    limits = [trainer["max_steps"]] if trainer["max_steps"] >= 0 else []
    if trainer["max_epochs"] and train_blocks:
        limits.append(math.ceil(trainer["max_epochs"] * train_blocks / batch_size))
    return min(limits, default=None)


def training_notes(name: str, stage: Stage, trainer: Mapping[str, Any], train_blocks: int) -> list[str]:
    """What a stage's training does otherwise than the trainer's keys may be read: passes, and early stopping."""
    return _passes_notes(name, stage, trainer["max_epochs"], train_blocks) + _stopping_notes(name, stage, trainer)


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


def _stopping_notes(name: str, stage: Stage, trainer: Mapping[str, Any]) -> list[str]:
    patience, interval = (trainer["early_stopping"] or {}).get("patience"), trainer["val_check_interval"]
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


def _filled_in(name: str, keys: Mapping[str, Any], cfg: Mapping[str, Any], train_blocks: int) -> dict[str, Any]:
    """The keys of a stage, with the general settings where it has none of its own."""
    given = {key: value for key, value in keys.items() if value is not None}
    replacement, dataset, trainer = cfg["replacement"], cfg["dataset"], cfg["trainer"]
    if STAGES.get(name).scope == "layers":
        general = {key: replacement[f"transfer_{key}"] for key in ("steps", "lr", "batch_size")}
    else:
        general = {"lr": cfg["optimizer"]["lr"]}
        general["batch_size"] = dataset["batch_size"] * trainer["accumulate_grad_batches"]
        batch_size = given.get("batch_size", general["batch_size"])
        general["steps"] = trainer_steps(trainer, train_blocks, batch_size)
    return {**keys, **general, **given}
