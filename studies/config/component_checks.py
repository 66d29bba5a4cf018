"""What is wrong with the components that a config names, as far as it can be told without weights.

Every check is given the parts of the config that it looks at, all of them with the right keys so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from data_modules import DATASETS, TOKENIZERS
from data_modules.documents import is_synthetic
from data_modules.tokenizer_settings import OWN, TokenizerSettings
from lightning_modules.config import EarlyStoppingSettings, TrackingSettings, TrainerSettings, is_chosen
from registries import MODELS, PLACEMENTS, UserError
from registries.layers import resolve_layers
from registries.model_shape import ModelShape, shape_of
from registries.option import base_values, shared_key_errors, shared_keys, split_keys
from registries.placements.placement import CHANGES_WEIGHTS, init_errors, linears
from registries.registry import parameters, signature_errors, wrong_arguments
from registries.settings import (
    ModelSettings,
    PlacementSettings,
    ReplacementSettings,
)
from studies.config.groups import GROUPS
from studies.run.trackers import TRACKERS

Parts = Mapping[str, Any]


def model_errors(cfg: Parts) -> list[str]:
    """What is wrong with the group `model`."""
    if not is_chosen(cfg["model"]):
        return ["model=none: a study needs a model, or an expansion.run that has one; model@source alone may be none"]
    return loader_errors(cfg, "model")


def replacement_errors(cfg: Parts) -> list[str]:
    """What is wrong with the group `replacement`, for the model."""
    group = cfg["replacement"]
    if not is_chosen(group):
        return []
    config = model_config(cfg)
    if config is None:  # a hub model that is not here yet: its shape is checked once it is
        return group_errors("replacement", group)
    errors = shared_key_errors(ReplacementSettings, group, f"replacement {group['name']!r}")
    try:
        shape = shape_of(config)
    except UserError as error:
        return errors + error.messages
    layers = [0]
    try:
        if not errors:
            layers = resolve_layers(ReplacementSettings.read(group).layers, shape.num_layers)
    except UserError as error:
        errors += [f"replacement.{line}" for line in error.messages]
    checks = [group_errors("replacement", group, shape=shape.attention(layer)) for layer in layers]
    return list(dict.fromkeys([*errors, *(message for messages in checks for message in messages)]))


def placement_errors(cfg: Parts) -> list[str]:
    """What is wrong with the group `placement`, for the model."""
    group = cfg["placement"]
    if not is_chosen(group):
        return []
    errors = group_errors("placement", group)
    init, dtype = group.get("init"), cfg["model"].get("dtype")
    if init in CHANGES_WEIGHTS and dtype not in ("auto", "float32"):
        errors.append(
            f"placement.init={init} takes its start out of the frozen weights, which would lose it to rounding in "
            f"model.dtype={dtype}: set model.dtype=float32"
        )
    config = model_config(cfg)
    if errors or config is None:  # a hub model that is not here yet: it is checked once it is
        return errors
    stand_in, settings = SimpleNamespace(config=config), PlacementSettings.read(group)
    try:
        arguments = settings.component_arguments()
        if "scores" in parameters(PLACEMENTS.get(settings.name)):
            # Whatever the scores will be: these allow every budget that some scores allow.
            ordered = sorted(linears(stand_in, ["attention", "mlp"]), key=lambda linear: linear.inputs + linear.outputs)
            arguments["scores"] = {linear.module: 1.0 if linear is ordered[0] else 1e-30 for linear in ordered}
        rows = PLACEMENTS.build(settings.name, model=stand_in, **arguments)
    except UserError as error:
        return error.messages
    return init_errors(stand_in, rows, settings.init)


def block_size_errors(cfg: Parts) -> list[str]:
    """Whether the model reads texts as long as the blocks of the dataset."""
    block_size, shape = cfg["dataset"]["block_size"], _known_shape(cfg)
    if shape is None or shape.limit is None or block_size <= shape.limit.tokens:
        return []
    return [f"dataset.block_size={block_size} is longer than {shape.limit.words}"]


def tokenizer_errors(cfg: Parts) -> list[str]:
    """What is wrong with the group `tokenizer`, for the dataset and the model."""
    group, dataset, model = cfg["tokenizer"], cfg["dataset"]["name"], cfg["model"]["name"]
    if group["name"] == OWN:
        return [
            f"tokenizer={OWN} has no key {key!r}: choose {' or '.join(TOKENIZERS)}" for key in group if key != "name"
        ]
    errors = group_errors("tokenizer", group)
    if dataset in DATASETS and is_synthetic(DATASETS.get(dataset)):
        errors.append(f"tokenizer={group['name']}: dataset {dataset!r} has no text to train it on; set tokenizer={OWN}")
    if model in MODELS and not {"num_tokens", "vocab_size"} & parameters(MODELS.get(model)).keys():
        errors.append(
            f"tokenizer={group['name']}: model={model} knows the tokens of its own tokenizer alone; set "
            f"tokenizer={OWN}, or take a model that is trained from scratch (context_lm, lstm, random)"
        )
    return errors


def optimizer_errors(cfg: Parts) -> list[str]:
    """What is wrong with the group `optimizer`."""
    return group_errors("optimizer", cfg["optimizer"])


def not_keys(key: str, value: Any) -> str:
    """The message about a value that stands where keys are expected."""
    return f"{key}={value!r}: {key} is no value but has keys of its own; set {key}.<key>=<value>"


def model_config(cfg: Parts, which: str = "model") -> dict[str, Any] | None:
    """The `config.json` of the model, or of the source model (`which`); None where it is not here yet."""
    return _loader(cfg, which).config()


def _loader(cfg: Parts, which: str) -> Any:
    num_tokens = TokenizerSettings.read(cfg["tokenizer"]).num_tokens if which == "model" else None
    return ModelSettings.read(cfg[which]).loader(cfg["cache_dir"], num_tokens)


def group_errors(which: str, chosen: Parts, **context: Any) -> list[str]:
    """What is wrong with the keys of a group: those that all its options share, and the component's own."""
    kind, registry, supplied = GROUPS[which].settings, GROUPS[which].registry, GROUPS[which].supplied
    errors = shared_key_errors(kind, chosen, f"{which} {chosen['name']!r}")
    own = split_keys(kind, chosen)[1]
    return errors + registry.check(chosen["name"], own, supplied, shared_keys(kind), **context)


def loader_errors(cfg: Parts, which: str) -> list[str]:
    """What is wrong with the model, or with the source model (`which`)."""
    errors = group_errors(which, cfg[which], key=f"{which}.path")
    if not errors:
        try:
            _loader(cfg, which)
        except UserError as error:
            errors = error.messages
    return errors


def _known_shape(cfg: Parts) -> ModelShape | None:
    """The shape of the model; None where it is not here yet, or of a family that is not known."""
    config = model_config(cfg)
    try:
        return shape_of(config) if config is not None else None
    except UserError:
        return None  # told by `replacement_errors` where it matters


def tracking_errors(cfg: Parts) -> list[str]:
    """What is wrong with the group `tracking`."""
    group, name = cfg["tracking"], cfg["tracking"]["name"]
    stores = [f"tracking={store}" for store in TRACKERS.names()]
    if name == "none":
        keys = [key for key in group if key != "name"]
        return [f"tracking=none has no key {key!r}: choose {' or '.join(stores)}" for key in keys]
    if name not in TRACKERS:
        return [f"tracking.name={name!r} is no option: choose {', '.join(stores)} or tracking=none"]
    shared, own = split_keys(TrackingSettings, group)
    errors = shared_key_errors(TrackingSettings, group, "tracking")
    return errors + TRACKERS.check(name, own, ("experiment",), list(shared), label="tracking")


def trainer_errors(cfg: Parts) -> list[str]:
    """What is wrong with the group `trainer`."""
    keys = {key: value for key, value in cfg["trainer"].items() if key != "name"}
    stopping = keys.pop("early_stopping", None) or {}
    wrong = wrong_arguments(TrainerSettings, keys, "trainer", ("name", "arguments", "early_stopping"))
    errors = [message for messages in wrong.values() for message in messages]
    if not isinstance(stopping, Mapping):
        errors.append(not_keys("trainer.early_stopping", stopping))
        stopping = {}
    stopping = {**base_values("trainer")["early_stopping"], **stopping}
    errors += signature_errors(EarlyStoppingSettings, stopping, "trainer.early_stopping")
    if stopping.get("patience") and keys.get("val_check_interval") is None:
        errors.append("trainer.early_stopping.patience counts validations: set trainer.val_check_interval")
    accelerator = keys.get("accelerator")
    if accelerator in ("gpu", "cuda") and not has_gpu():
        errors.append(f"trainer.accelerator={accelerator}: there is no GPU here. Use trainer=auto or trainer=cpu")
    if keys.get("precision") == "16-mixed" and (accelerator == "cpu" or not has_gpu()):
        errors.append("trainer.precision=16-mixed needs a GPU; a processor computes bf16-mixed")
    if keys.get("max_steps") == -1 and all(keys.get(key) is None for key in ("max_epochs", "max_tokens", "max_flops")):
        errors.append(
            "trainer.max_steps=-1 leaves training without an end: set trainer.max_epochs, trainer.max_tokens, "
            "trainer.max_flops or trainer.max_steps"
        )
    return errors


def dataset_errors(cfg: Parts) -> list[str]:
    """What is wrong with the group `dataset`."""
    import data_modules

    return data_modules.dataset_errors(cfg["dataset"])


def has_gpu() -> bool:
    """Whether this machine has a GPU that torch can use."""
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()
