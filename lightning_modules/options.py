"""Which keys of the config groups go where, and what is wrong with them: all that can be told without weights."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

from data_modules.caches.activation_cache import ActivationCache
from lightning_modules.optimizers import OPTIMIZERS, Schedule
from registries import ADAPTERS, ATTENTION, COMPRESSORS, MODELS, PLACEMENTS, UserError
from registries.layers import resolve_layers
from registries.model_shape import shape_of
from registries.models.model_folder import absolute_path
from registries.placements.placement import CHANGES_WEIGHTS, Init, Variant, init_errors, linears
from registries.registry import parameters, signature_errors

Which = Literal["model", "source"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def model_options(dtype: Dtype = "auto", freeze: bool = True) -> None:
    """The keys of the group `model` that are not the source's."""


def surgery_options(
    layers: str | int | list[int] = "first:1",
    init: Literal["copy", "random"] = "copy",
    transfer_steps: Annotated[int, Ge(0)] = 400,
    transfer_lr: Annotated[float, Gt(0)] = 3e-3,
    transfer_batch_size: Annotated[int, Ge(1)] = 2,
) -> None:
    """The keys of the group `replacement` that are not the core's."""


def placement_options(
    alpha: Annotated[float, Gt(0)] = 32.0,
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
    variant: Variant = "lora",
    init: Init = "kaiming",
) -> None:
    """The keys of the group `placement` that are not the component's."""


def adapter_options(
    layers: str | int | list[int] = "at:50%",
    source_layers: str | int | list[int] | None = None,
    shared: bool = False,
    first_token: Literal["constant", "translate"] = "constant",
    exchange: bool = False,
) -> None:
    """The keys of the group `adapter` that are not the component's."""


def adapter_training_options(
    epochs: Annotated[int, Ge(0)] = 3,
    lr: Annotated[float, Gt(0)] = 3e-3,
    batch_size: Annotated[int, Ge(1)] = 1,
    alignment_weight: Annotated[float, Ge(0)] = 1.0,
    generation_weight: Annotated[float, Ge(0)] = 0.0,
    contrastive_weight: Annotated[float, Ge(0)] = 0.0,
    temperature: Annotated[float, Gt(0)] = 0.07,
    negatives: Annotated[int, Ge(1)] = 127,
    contrast: Literal["tokens", "sequences"] = "tokens",
    metrics_every: Annotated[int, Ge(1)] = 100,
) -> None:
    """The keys of the group `adapter` of components that are trained."""


def compressor_options(
    tokens: Annotated[int, Ge(1)] = 16,
    context: Annotated[int, Ge(1)] = 256,
    source_layer: str | int = "at:100%",
    steps: Annotated[int, Ge(0)] = 200,
    lr: Annotated[float, Gt(0)] = 1e-3,
    batch_size: Annotated[int, Ge(1)] = 1,
) -> None:
    """The keys of the group `compressor` that are not the component's (which gets `tokens` too)."""


def optimizer_options(
    schedule: Schedule = "cosine",
    warmup_steps: Annotated[int, Ge(0)] | None = None,
    scale_lr: Literal["none", "sqrt", "linear"] = "none",
    base_batch_size: Annotated[int, Ge(1)] = 1,
) -> None:
    """The keys of the group `optimizer` that are not the optimizer's."""


def split(group: Mapping[str, Any], shared: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of a config group: those that `shared` declares, and the component's own. `name` is neither."""
    known = parameters(shared)
    own = {key: value for key, value in group.items() if key not in known and key != "name"}
    return {key: value for key, value in group.items() if key in known}, own


def with_absolute_paths(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the absolute paths of local models, as it is recorded: the run can be loaded from anywhere."""
    absolute = dict(cfg)
    for group, key in (("model", "path"), ("source", "path"), ("model", "tokenizer"), ("source", "tokenizer")):
        if cfg[group].get(key) is not None:
            absolute[group] = {**absolute[group], key: absolute_path(cfg[group][key])}
    stages = {name: dict(keys) for name, keys in (cfg["recovery"] or {}).items()}
    for keys in stages.values():
        if keys.get("teacher") is not None:
            keys["teacher"] = absolute_path(keys["teacher"])
    return {**absolute, "recovery": stages or cfg["recovery"]}


def loader_arguments(cfg: Mapping[str, Any], which: Which = "model") -> dict[str, Any]:
    """The arguments of a model's source: the keys of its group, and `cache_dir` where it asks for one."""
    _, arguments = split(cfg[which], model_options)
    name = cfg[which]["name"]
    if name in MODELS and "cache_dir" in parameters(MODELS.get(name)):
        arguments["cache_dir"] = cfg["cache_dir"]
    return arguments


def model_loader(cfg: Mapping[str, Any], which: Which = "model") -> Any:
    """The `ModelLoader` of `cfg.model`, or of the second model, `cfg.source`."""
    return MODELS.build(cfg[which]["name"], **loader_arguments(cfg, which))


def check_model(cfg: Mapping[str, Any], which: Which = "model") -> list[str]:
    """What is wrong with `cfg.model`, or with `cfg.source`."""
    shared, _ = split(cfg[which], model_options)
    name = cfg[which]["name"]
    errors = signature_errors(model_options, shared, f"{which} {name!r}")
    found = MODELS.check(name, loader_arguments(cfg, which))
    errors += [message.replace("model.path", f"{which}.path", 1) for message in found]
    if which == "source" and not shared.get("freeze", True):
        errors.append("source.freeze=false: the second model is only read; nothing of it is trained")
    return errors


def check_replacement(cfg: Mapping[str, Any]) -> list[str]:
    """What is wrong with `cfg.replacement`, for the model of `cfg.model` (which must be right)."""
    name = cfg["replacement"]["name"]
    if name == "none":
        return []
    shared, arguments = split(cfg["replacement"], surgery_options)
    errors = signature_errors(surgery_options, shared, f"replacement {name!r}")
    config = model_loader(cfg).config()
    if config is None:  # a hub model that is not here yet: its shape is checked once it is
        return errors + ATTENTION.check(name, arguments, {"shape"})
    try:
        shape = shape_of(config)
    except UserError as error:
        return errors + error.messages
    layers = [0]
    try:
        if not errors:
            layers = resolve_layers(cfg["replacement"]["layers"], shape.num_layers)
    except UserError as error:
        errors += [f"replacement.{line}" for line in error.messages]
    checks = [ATTENTION.check(name, arguments, {"shape"}, shape=shape.attention(layer)) for layer in layers]
    return errors + list(dict.fromkeys(message for messages in checks for message in messages))


def placement_arguments(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the placement of `cfg.placement`, without what is measured."""
    shared, arguments = split(cfg["placement"], placement_options)
    name = cfg["placement"]["name"]
    if name in PLACEMENTS and "variant" in parameters(PLACEMENTS.get(name)):
        arguments["variant"] = shared.get("variant", "lora")
    return arguments


def check_placement(cfg: Mapping[str, Any]) -> list[str]:
    """What is wrong with `cfg.placement`, for the model of `cfg.model` (which must be right)."""
    name = cfg["placement"]["name"]
    if name == "none":
        return []
    shared, _ = split(cfg["placement"], placement_options)
    arguments = placement_arguments(cfg)
    own = {key: value for key, value in arguments.items() if key not in shared}
    errors = signature_errors(placement_options, shared, f"placement {name!r}")
    errors += PLACEMENTS.check(name, own, {"model", "scores", "variant"})
    if shared.get("init") in CHANGES_WEIGHTS and cfg["model"]["dtype"] not in ("auto", "float32"):
        errors.append(
            f"placement.init={shared['init']} takes its start out of the frozen weights, which would lose it to "
            f"rounding in model.dtype={cfg['model']['dtype']}: set model.dtype=float32"
        )
    config = model_loader(cfg).config()
    if errors or config is None:  # a hub model that is not here yet: it is checked once it is
        return errors
    stand_in = SimpleNamespace(config=config)
    try:
        if "scores" in parameters(PLACEMENTS.get(name)):
            # Whatever the scores will be: these allow every budget that some scores allow.
            layers = sorted(linears(stand_in, ["attention", "mlp"]), key=lambda each: each.inputs + each.outputs)
            arguments["scores"] = {each.module: 1.0 if each is layers[0] else 1e-30 for each in layers}
        rows = PLACEMENTS.build(name, model=stand_in, **arguments)
    except UserError as error:
        return error.messages
    return init_errors(stand_in, rows, shared.get("init", "kaiming"))


def exchanged(cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config with the two models in each other's place where `adapter.exchange` says so."""
    if not cfg["adapter"].get("exchange"):
        return cfg
    adapter = {**cfg["adapter"], "exchange": False}
    return {**cfg, "model": cfg["source"], "source": cfg["model"], "adapter": adapter}


def adapter_arguments(cfg: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The keys of `cfg.adapter`: those of all adapters, those of their training, and the component's own."""
    shared, others = split(cfg["adapter"], adapter_options)
    training, own = split(others, adapter_training_options)
    return shared, training, own


def resolve_sites(cfg: Mapping[str, Any], source_layers: int, target_layers: int) -> list[tuple[int, int]]:
    """Pairs of blocks, of the source and of the target, that `cfg.adapter` names; one more than there are blocks.

    Raises:
        UserError: a layer that a model does not have, or unequal numbers of them.
    """
    adapter = cfg["adapter"]
    try:
        resolve_layers(adapter["layers"], target_layers + 1)  # each once
        targets = _in_order(adapter["layers"], target_layers + 1)
    except UserError as error:
        raise UserError(f"adapter.{line}, the last of which is the final norm" for line in error.messages) from error
    if adapter["source_layers"] is None:
        return [(round(layer / target_layers * source_layers), layer) for layer in targets]
    try:
        sources = _in_order(adapter["source_layers"], source_layers + 1)
    except UserError as error:
        messages = (line.replace("this model's", "the source's") for line in error.messages)
        lines = (line.replace("layers=", "source_layers=", 1) for line in messages)
        raise UserError(f"adapter.{line}, the last of which is the final norm" for line in lines) from error
    if len(sources) != len(targets):
        raise UserError(
            f"adapter.source_layers names {len(sources)} layers and adapter.layers {len(targets)}: as many are needed, "
            "or source_layers=null for the same relative depths"
        )
    return list(zip(sources, targets, strict=True))


def _in_order(spec: str | int | list[int], num_layers: int) -> list[int]:
    """The layers of a spec, those of a list in its order: they are paired with those of another one."""
    if not isinstance(spec, list):
        return resolve_layers(spec, num_layers)
    resolve_layers(list(dict.fromkeys(spec)), num_layers)  # raises where one is wrong
    return [layer % num_layers for layer in spec]


def check_adapter(cfg: Mapping[str, Any]) -> list[str]:
    """What is wrong with `cfg.adapter` and `cfg.source`, for the model of `cfg.model` (which must be right)."""
    name, source = cfg["adapter"]["name"], cfg["source"]["name"]
    if name == "none":
        unread = source != "none" and cfg["compressor"]["name"] == "none"
        return [f"model@source={source} is read by no adapter: choose one (adapter=ridge)"] if unread else []
    if cfg["compressor"]["name"] != "none":
        return [f"adapter={name} and compressor={cfg['compressor']['name']} are studies of their own: leave one out"]
    if source == "none":
        return [f"adapter={name} reads a second model: choose one (model@source=tiny_phi)"]
    if errors := check_model(cfg, "source"):
        return errors
    shared, training, own = adapter_arguments(cfg)
    errors = signature_errors(adapter_options, shared, f"adapter {name!r}")
    errors += signature_errors(adapter_training_options, training, f"adapter {name!r}")
    widths = {"source_width", "target_width"}
    configs = [model_loader(cfg, which).config() for which in ("source", "model")]
    if None in configs:  # a hub model that is not here yet: it is checked once it is
        return errors + ADAPTERS.check(name, own, widths)
    try:
        source_shape, target_shape = (shape_of(config) for config in configs)
    except UserError as error:
        return errors + error.messages
    sizes = {"source_width": source_shape.hidden_size, "target_width": target_shape.hidden_size}
    errors += ADAPTERS.check(name, own, widths, **sizes)
    if errors:
        return errors
    try:
        resolve_sites(cfg, source_shape.num_layers, target_shape.num_layers)
    except UserError as error:
        errors += error.messages
    return errors + _training_errors(training, cfg["trainer"]["devices"])


def check_compressor(cfg: Mapping[str, Any]) -> list[str]:
    """What is wrong with `cfg.compressor` and `cfg.source`, for the model of `cfg.model` (which must be right)."""
    name, source = cfg["compressor"]["name"], cfg["source"]["name"]
    if name == "none" or cfg["adapter"]["name"] != "none":
        return []
    if source == "none":
        return [f"compressor={name} reads a second model: choose one (model@source=smollm2_135m)"]
    if errors := check_model(cfg, "source"):
        return errors
    shared, own = split(cfg["compressor"], compressor_options)
    errors = signature_errors(compressor_options, shared, f"compressor {name!r}")
    errors += COMPRESSORS.check(name, own, {"source_width", "target_width", "tokens"})
    if errors:
        return errors
    if shared["context"] > cfg["dataset"]["block_size"] - 2:
        errors.append(
            f"compressor.context={shared['context']} leaves no continuation of a block of "
            f"{cfg['dataset']['block_size']} tokens: set dataset.block_size to more, or it to less"
        )
    if shared["tokens"] > shared["context"]:
        errors.append(
            f"compressor.tokens={shared['tokens']} are more than the {shared['context']} tokens of compressor.context: "
            "that compresses nothing; set it to less"
        )
    config = model_loader(cfg, "source").config()
    try:
        if config is not None and len(resolve_layers(shared["source_layer"], shape_of(config).num_layers + 1)) > 1:
            errors.append(f"compressor.source_layer={shared['source_layer']} names several layers: one is encoded")
    except UserError as error:
        errors += [f"compressor.source_{line}" for line in error.messages]
    return errors


def _training_errors(training: Mapping[str, Any], devices: int) -> list[str]:
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


def check_block_size(cfg: Mapping[str, Any]) -> list[str]:
    """Whether the model reads texts as long as the blocks of `cfg.dataset`."""
    config, block_size = model_loader(cfg).config(), cfg["dataset"]["block_size"]
    try:
        shape = shape_of(config) if config is not None else None
    except UserError:
        return []  # told by check_replacement where it matters
    if shape is None or shape.limit is None or block_size <= shape.limit.tokens:
        return []
    return [f"dataset.block_size={block_size} is longer than {shape.limit.words}"]


def check_optimizer(cfg: Mapping[str, Any]) -> list[str]:
    """What is wrong with `cfg.optimizer`."""
    shared, arguments = split(cfg["optimizer"], optimizer_options)
    name = cfg["optimizer"]["name"]
    errors = signature_errors(optimizer_options, shared, f"optimizer {name!r}")
    return errors + OPTIMIZERS.check(name, arguments, {"parameters"})


def activation_cache(cfg: Mapping[str, Any], keep: bool = True) -> ActivationCache:
    """The cache of `cfg.activations`; without `keep`, one that computes everything as it is asked for."""
    activations = cfg["activations"]
    return ActivationCache(cfg["cache_dir"], activations["max_gb"], keep and activations["cache"])


def plain(cfg: Any) -> dict[str, Any]:
    """A config as plain dicts and lists; components never see OmegaConf."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else cfg
