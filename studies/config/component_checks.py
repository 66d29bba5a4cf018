"""What is wrong with the components that a config names, as far as it can be told without weights.

Every check is given the parts of the config that it looks at, all of them with the right keys so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from lightning_modules.config import is_chosen
from lightning_modules.two_models.sites import resolve_sites
from registries import ADAPTERS, PLACEMENTS, UserError
from registries.layers import resolve_layers
from registries.model_shape import ModelShape, shape_of
from registries.option import read_option, shared_key_errors, shared_keys, split_keys
from registries.placements.placement import CHANGES_WEIGHTS, init_errors, linears
from registries.registry import parameters, signature_errors
from registries.settings import (
    AdapterSettings,
    AdapterTrainingSettings,
    CompressorSettings,
    ModelSettings,
    PlacementSettings,
    ReplacementSettings,
)
from studies.config.groups import GROUPS

Parts = Mapping[str, Any]


def model_errors(cfg: Parts) -> list[str]:
    """Of the group `model`."""
    if not is_chosen(cfg["model"]):
        return ["model=none: a study needs a model; only the second one (model@source) may be none"]
    return _loader_errors(cfg, "model")


def replacement_errors(cfg: Parts) -> list[str]:
    """Of the group `replacement`, for the model."""
    group = cfg["replacement"]
    if not is_chosen(group):
        return []
    config = model_config(cfg)
    if config is None:  # a hub model that is not here yet: its shape is checked once it is
        return _group_errors("replacement", group)
    errors = shared_key_errors(ReplacementSettings, group, f"replacement {group['name']!r}")
    try:
        shape = shape_of(config)
    except UserError as error:
        return errors + error.messages
    layers = [0]
    try:
        if not errors:
            layers = resolve_layers(read_option(ReplacementSettings, group).layers, shape.num_layers)
    except UserError as error:
        errors += [f"replacement.{line}" for line in error.messages]
    checks = [_group_errors("replacement", group, shape=shape.attention(layer)) for layer in layers]
    return list(dict.fromkeys([*errors, *(message for messages in checks for message in messages)]))


def placement_errors(cfg: Parts) -> list[str]:
    """Of the group `placement`, for the model."""
    group = cfg["placement"]
    if not is_chosen(group):
        return []
    errors = _group_errors("placement", group)
    init, dtype = group.get("init"), cfg["model"].get("dtype")
    if init in CHANGES_WEIGHTS and dtype not in ("auto", "float32"):
        errors.append(
            f"placement.init={init} takes its start out of the frozen weights, which would lose it to rounding in "
            f"model.dtype={dtype}: set model.dtype=float32"
        )
    config = model_config(cfg)
    if errors or config is None:  # a hub model that is not here yet: it is checked once it is
        return errors
    stand_in, settings = SimpleNamespace(config=config), read_option(PlacementSettings, group)
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


def adapter_errors(cfg: Parts) -> list[str]:
    """Of the groups `adapter` and `model@source`, for the model."""
    name, source = cfg["adapter"]["name"], cfg["source"]["name"]
    if name == "none":
        unread = source != "none" and not is_chosen(cfg["compressor"])
        return [f"model@source={source} is read by no adapter: choose one (adapter=ridge)"] if unread else []
    if is_chosen(cfg["compressor"]):
        return [f"adapter={name} and compressor={cfg['compressor']['name']} are studies of their own: leave one out"]
    if source == "none":
        return [f"adapter={name} reads a second model: choose one (model@source=tiny_phi)"]
    if errors := _source_errors(cfg):
        return errors
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
    """Of the groups `compressor` and `model@source`, for the model."""
    group, source = cfg["compressor"], cfg["source"]["name"]
    if not is_chosen(group) or is_chosen(cfg["adapter"]):
        return []
    if source == "none":
        return [f"compressor={group['name']} reads a second model: choose one (model@source=smollm2_135m)"]
    if errors := _source_errors(cfg):
        return errors
    if errors := _group_errors("compressor", group):
        return errors
    settings, block_size = read_option(CompressorSettings, group), cfg["dataset"]["block_size"]
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


def block_size_errors(cfg: Parts) -> list[str]:
    """Whether the model reads texts as long as the blocks of the dataset."""
    block_size, shape = cfg["dataset"]["block_size"], _known_shape(cfg)
    if shape is None or shape.limit is None or block_size <= shape.limit.tokens:
        return []
    return [f"dataset.block_size={block_size} is longer than {shape.limit.words}"]


def optimizer_errors(cfg: Parts) -> list[str]:
    """Of the group `optimizer`."""
    return _group_errors("optimizer", cfg["optimizer"])


def model_config(cfg: Parts, which: str = "model") -> dict[str, Any] | None:
    """The `config.json` of the model, or of the source model (`which`); None where it is not here yet."""
    return read_option(ModelSettings, cfg[which]).loader(cfg["cache_dir"]).config()


def _group_errors(which: str, chosen: Parts, **context: Any) -> list[str]:
    """What is wrong with the keys of a group: those that all its options share, and the component's own."""
    kind, registry, supplied = GROUPS[which].settings, GROUPS[which].registry, GROUPS[which].supplied
    errors = shared_key_errors(kind, chosen, f"{which} {chosen['name']!r}")
    own = split_keys(kind, chosen)[1]
    return errors + registry.check(chosen["name"], own, supplied, shared_keys(kind), **context)


def _loader_errors(cfg: Parts, which: str) -> list[str]:
    return _group_errors(which, cfg[which], key=f"{which}.path")


def _source_errors(cfg: Parts) -> list[str]:
    errors = _loader_errors(cfg, "source")
    if not cfg["source"].get("freeze", True):
        errors.append("source.freeze=false: the second model is only read; nothing of it is trained")
    return errors


def _is_trained(name: str) -> bool:
    from registries.adapters.adapter import is_trained

    return is_trained(name)


def _known_shape(cfg: Parts) -> ModelShape | None:
    """The shape of the model; None where it is not here yet, or of a family that is not known."""
    config = model_config(cfg)
    try:
        return shape_of(config) if config is not None else None
    except UserError:
        return None  # told by `replacement_errors` where it matters


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
