"""What is wrong with the groups of studies of two models, as far as it can be told without weights."""

from __future__ import annotations

import re

from lightning_modules.config import TWO_MODEL_MODULES, is_chosen
from lightning_modules.two_models.sites import resolve_sites
from registries import ADAPTERS, MODELS, UserError
from registries.layers import resolve_layers
from registries.model_shape import shape_of
from registries.option import CONF, shared_key_errors, split_keys
from registries.registry import signature_errors
from registries.settings import AdapterSettings, AdapterTrainingSettings, CompressorSettings
from studies.config.component_checks import Parts, group_errors, loader_errors, model_config
from studies.config.groups import GROUPS


def source_errors(cfg: Parts) -> list[str]:
    """What is wrong with the group `model@source`, and with the groups that read it."""
    source = cfg["source"]
    groups = [key for key in TWO_MODEL_MODULES if is_chosen(cfg[key])]
    readers = [f"{key}={cfg[key]['name']}" for key in groups]
    if not readers:
        unread = f"model@source={source['name']} is read by no adapter: choose one (adapter=ridge)"
        return [unread] if is_chosen(source) else []
    if len(readers) > 1:
        return [f"{' and '.join(readers)} are studies of their own: leave one out"]
    if not is_chosen(source):
        return [f"{readers[0]} reads a second model: choose one (model@source={_usual_source(groups[0])})"]
    if starts_at_random(source["name"]):
        return [
            f"model@source={source['name']} starts from random weights, of which there is nothing to read: choose a "
            f"pretrained model (model@source={_usual_source(groups[0])})"
        ]
    errors = loader_errors(cfg, "source")
    if not source.get("freeze", True):
        errors.append("source.freeze=false: the second model is only read; nothing of it is trained")
    return errors


def starts_at_random(model: str) -> bool:
    """Whether a registered model is one that is trained from scratch alone."""
    from registries.models.recurrence import RECURRENCES  # which needs torch

    return model in MODELS and model in RECURRENCES


def _usual_source(group: str) -> str:
    """The source model that the options of a group choose."""
    (name,) = re.findall(r"override /model@_global_\.source: (\w+)", (CONF / "base" / f"{group}.yaml").read_text())
    return name


def adapter_errors(cfg: Parts) -> list[str]:
    """What is wrong with the group `adapter`, for two models that are right."""
    name = cfg["adapter"]["name"]
    if name == "none":
        return []
    if name not in ADAPTERS:
        return ADAPTERS.check(name, {})
    label, widths = f"adapter {name!r}", GROUPS["adapter"].supplied
    shared, own = split_keys(AdapterSettings, cfg["adapter"])
    errors, allowed, training = shared_key_errors(AdapterSettings, cfg["adapter"], label), [*shared], {}
    if _is_trained(name):
        training, own = split_keys(AdapterTrainingSettings, own)
        errors += signature_errors(AdapterTrainingSettings, training, label)
        allowed += training
    configs = [model_config(cfg, which) for which in ("source", "model")]
    if None in configs:  # a hub model that is not here yet: it is checked once it is
        return errors + ADAPTERS.check(name, own, widths, allowed)
    try:
        shapes = [shape_of(config) for config in configs]
    except UserError as error:
        return errors + error.messages
    known = dict(zip(widths, (shape.hidden_size for shape in shapes), strict=True))
    errors += ADAPTERS.check(name, own, widths, allowed, **known)
    if errors:
        return errors
    try:
        resolve_sites(AdapterSettings.read(cfg["adapter"]), *(shape.num_layers for shape in shapes))
    except UserError as error:
        errors += error.messages
    return errors + _adapter_training_errors(training, cfg["trainer"]["devices"])


def compressor_errors(cfg: Parts) -> list[str]:
    """What is wrong with the group `compressor`, for two models that are right."""
    group = cfg["compressor"]
    if not is_chosen(group):
        return []
    if errors := group_errors("compressor", group):
        return errors
    settings, block_size = CompressorSettings.read(group), cfg["dataset"]["block_size"]
    if settings.context > block_size - 2:
        errors.append(
            f"compressor.context={settings.context} leaves no continuation of a block of {block_size} tokens: set "
            "dataset.block_size to more, or it to less"
        )
    if settings.tokens > settings.context:
        errors.append(
            f"compressor.tokens={settings.tokens} are more than the {settings.context} tokens of compressor.context: "
            "that compresses nothing; set it to less"
        )
    config = model_config(cfg, "source")
    try:
        if config is not None and len(resolve_layers(settings.source_layer, shape_of(config).num_layers + 1)) > 1:
            errors.append(f"compressor.source_layer={settings.source_layer} names several layers: one is encoded")
    except UserError as error:
        errors += [f"compressor.source_{line}" for line in error.messages]
    return errors


def _is_trained(name: str) -> bool:
    from registries.adapters.adapter import is_trained

    return is_trained(name)


def _adapter_training_errors(training: Parts, devices: int) -> list[str]:
    weights = [key for key in training if key.endswith("_weight")]
    errors = []
    if weights and not any(training[key] for key in weights):
        errors.append(f"adapter.{', adapter.'.join(weights)} are all 0: there is nothing to train the adapter for")
    contrasts = training.get("contrastive_weight") and training["contrast"] == "sequences"
    if contrasts and training["batch_size"] < 2 * devices:
        step = "a step" if devices == 1 else "a step (of each device)"
        errors.append(
            f"adapter.contrast=sequences compares the blocks of {step}: set adapter.batch_size to {2 * devices} or more"
        )
    return errors
