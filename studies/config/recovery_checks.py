"""What is wrong with the stages of a recovery, for a model and a replacement that are right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_modules.config import TWO_MODEL_MODULES, Config, read_config
from lightning_modules.stages import STAGES
from lightning_modules.training.stage_plan import filled_in, step_sizes
from registries import ATTENTION, UserError
from registries.architectures import ARCHITECTURES, architecture_of, resolve_roles
from registries.counts import number_of
from registries.layers import resolve_layers
from registries.model_shape import shape_of
from registries.models.model_folder import path_errors
from registries.models.pretrained import PretrainedModel
from studies.config.component_checks import has_gpu, not_keys


def recovery_errors(parts: Mapping[str, Any]) -> list[str]:
    """What is wrong with the group `recovery`."""
    recovery = parts["recovery"]
    keyless = [not_keys(f"recovery.{name}", keys) for name, keys in recovery.items() if not isinstance(keys, Mapping)]
    if keyless:
        return keyless
    wrong = {name: STAGES.check(name, keys, ("workspace",)) for name, keys in recovery.items()}
    errors = [message for messages in wrong.values() for message in messages]
    right = {name: keys for name, keys in parts["recovery"].items() if not wrong[name]}
    cfg = read_config({**parts, "recovery": right})
    errors += _budget_errors(cfg) + _search_errors(cfg)
    for name, keys in cfg.recovery.items():
        errors += [f"recovery.{name}{message}" for message in _stage_errors(cfg, name, keys)]
    config = cfg.model_loader().config() or {}
    if cfg.trainer.gradient_checkpointing and not _has_blocks(config):
        errors.append(
            f"trainer.gradient_checkpointing=true: model={cfg.model.name} has no blocks to compute twice; set it to "
            "false"
        )
    if cfg.trainer.gradient_checkpointing and not _allows_checkpointing(cfg):
        errors.append(
            f"trainer.gradient_checkpointing=true: replacement {cfg.replacement.name!r} forbids it, since it does not "
            "compute the same twice; set it to false"
        )
    return errors


def _budget_errors(cfg: Config) -> list[str]:
    """Whether the budget of tokens is enough for a step."""
    if cfg.trainer.max_tokens is None:
        return []
    budget, block_size = number_of(cfg.trainer.max_tokens), cfg.dataset.block_size
    return [
        f"trainer.max_tokens={cfg.trainer.max_tokens} is less than one step, which has {blocks} blocks ({key}) of "
        f"{block_size} tokens: set it to {blocks * block_size} at least"
        for key, blocks in step_sizes(cfg).items()
        if not key.startswith("replacement.") and blocks * block_size > budget
    ]


def _search_errors(cfg: Config) -> list[str]:
    """What does not go with a search for the rate or the batch size."""
    trainer, errors = cfg.trainer, []
    searches = [key for key in ("find_lr", "find_batch_size") if getattr(trainer, key)]
    if searches and cfg.recovery:
        errors.append(
            f"trainer.{searches[0]}=true: the stages of recovery have rates and batches of their own; leave it out"
        )
    if searches and trainer.devices > 1:
        errors.append(f"trainer.{searches[0]}=true searches on one device: set trainer.devices=1")
    if trainer.find_lr and cfg.optimizer.scale_lr != "none":
        errors.append("trainer.find_lr=true finds the rate of the batches as they are: set optimizer.scale_lr=none")
    if trainer.find_batch_size and not has_gpu():
        errors.append(
            "trainer.find_batch_size=true needs a GPU, which says when its memory is full, as a processor does not: "
            "set dataset.batch_size"
        )
    return errors


def device_errors(parts: Mapping[str, Any]) -> list[str]:
    """Steps with fewer blocks than there are devices to share them, in a config that is right."""
    cfg = read_config(parts)
    devices, sizes = cfg.trainer.devices, step_sizes(cfg)
    for group in TWO_MODEL_MODULES:
        settings = getattr(cfg, group)
        training = getattr(settings, "training", settings)  # None of what is not trained
        if training is not None:
            sizes[f"{group}.batch_size"] = training.batch_size
    return [
        f"trainer.devices={devices}: each takes one block of a step at least, but {key}={size}; raise it"
        for key, size in sizes.items()
        if size < devices
    ]


def _stage_errors(cfg: Config, name: str, keys: Mapping[str, Any]) -> list[str]:
    """What is wrong with a stage whose keys have the right types, each starting with what follows its name."""
    errors, operated, placed = [], cfg.replacement is not None, cfg.placement is not None
    stage, trains_lora = STAGES.get(name), placed and keys.get("train") == "replaced"
    if placed and name == "lora":
        errors.append(
            f" adds LoRA a second time, beside placement={cfg.placement.name}: leave one of them out; next_token and "
            "kl train what is placed"
        )
    elif not (operated or trains_lora) and (
        stage.scope == "layers" or "replaced" in (keys.get("train"), keys.get("layers"))
    ):
        remedies = {"train": "train=model", "layers": "layers=all"}
        remedy = "".join(f", or {option}" for key, option in remedies.items() if keys.get(key) == "replaced")
        errors.append(f" trains nothing: no layer is replaced. Choose a replacement{remedy}")
    elif not operated and stage.imitates(keys):
        remedy = " or a teacher" if "teacher" in keys else " or objective=next_token" if "objective" in keys else ""
        errors.append(f" imitates the untouched model, which this is: choose a replacement{remedy}")
    elif filled_in(name, keys, cfg)["steps"] == 0:
        general = "replacement.transfer_steps" if stage.scope == "layers" else "trainer.max_steps"
        errors.append(f".steps=null takes {general}, which is 0: the stage trains nothing")
    if keys.get("attention_weight") and operated and not hasattr(ATTENTION.get(cfg.replacement.name), "weights"):
        errors.append(f".attention_weight: {cfg.replacement.name!r} does not tell its attention weights; set it to 0")
    return errors + _lora_errors(cfg, keys) + _teacher_errors(cfg, keys)


def _lora_errors(cfg: Config, keys: Mapping[str, Any]) -> list[str]:
    config, errors = cfg.model_loader().config(), []
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


def _teacher_errors(cfg: Config, keys: Mapping[str, Any]) -> list[str]:
    path = keys.get("teacher")
    if path is None:
        return []
    if wrong := path_errors(path, ".teacher"):
        return wrong
    config, teacher_config = cfg.model_loader().config(), PretrainedModel(path).config()
    if config is None or teacher_config is None:  # a hub model that is not here: told when it is loaded
        return []
    try:
        shape, teacher_shape = shape_of(config), shape_of(teacher_config)
    except UserError as error:
        return [f".teacher={path}: {message}" for message in error.messages]
    limit, block_size = teacher_shape.limit, cfg.dataset.block_size
    if limit is not None and block_size > limit.tokens:
        return [f".teacher={path}: dataset.block_size={block_size} is longer than {limit.words}"]
    if teacher_shape.vocab_size == shape.vocab_size:
        return []
    return [
        f".teacher={path} has a vocabulary of {teacher_shape.vocab_size} tokens, the model has {shape.vocab_size}: "
        "take one with the same tokenizer"
    ]


def _has_blocks(config: Mapping[str, Any]) -> bool:
    family = config.get("model_type")
    return family not in ARCHITECTURES or ARCHITECTURES.get(family).blocks is not None


def _allows_checkpointing(cfg: Config) -> bool:
    return cfg.replacement is None or getattr(ATTENTION.get(cfg.replacement.name), "repeatable", True)
