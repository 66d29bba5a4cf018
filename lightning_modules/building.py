"""From a composed config to a LightningModule: load, operate, restore."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data_modules import build_data_module
from data_modules.activations import ActivationCache
from data_modules.block_data_module import BlockDataModule
from data_modules.token_cache import read_tensors
from data_modules.tokens import vocabulary_size
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.compression import CompressionModule
from lightning_modules.cross_model import CrossModelModule
from lightning_modules.importance import measure_scores
from lightning_modules.inputs import batch_rows, scored_labels
from lightning_modules.length_guard import guard_length
from lightning_modules.nll import IGNORED
from lightning_modules.objectives import next_token_nll
from lightning_modules.options import (
    build_source,
    exchanged,
    placement_arguments,
    placement_options,
    split,
    surgery_options,
)
from lightning_modules.peft_folder import load_adapter
from lightning_modules.placement import place
from lightning_modules.processes import from_first
from lightning_modules.recovery import build_stages, recovery_plan
from lightning_modules.stages import Workspace
from lightning_modules.surgery import part, replace_attention
from registries import PLACEMENTS, UserError
from registries.architectures import shape_of
from registries.layers import resolve_layers
from registries.placements import CHANGES_WEIGHTS, linears
from registries.plugins import import_plugins
from registries.registry import parameters

log = logging.getLogger(__name__)

BFLOAT16_WIDTH = 512
PLACEMENT_BATCHES = 8  # of training data, where an init looks at it
TRAINED_WEIGHTS = Path("checkpoints") / "trained.safetensors"
BRIDGE_WEIGHTS = Path("checkpoints") / "bridges.safetensors"
ADAPTER_FOLDER = "adapter"
ADAPTER_STAGE = "adapter"  # the stage that trains what lies between two models
COMPRESSOR_STAGE = "compressor"  # the same of what is between a text and its soft tokens
CONFIG_KEYS = ("model", "replacement", "dataset", "optimizer", "trainer", "seed", "plugins", "cache_dir")
LATER_GROUPS = ("placement", "adapter", "compressor", "source")  # which the configs of earlier versions do not have


def load_language_model(cfg: Mapping[str, Any], source: Any, tokenizer: Any) -> CausalLMModule:
    """The model as it is, before any surgery."""
    torch.manual_seed(cfg["seed"])  # for a model with random weights
    dtype = cfg["model"]["dtype"]
    if dtype == "auto" and cfg["placement"].get("init") in CHANGES_WEIGHTS:
        dtype = "float32"  # frozen weights change, and would lose that to rounding
    model = source.model(resolve_dtype(dtype, cfg["model"]["freeze"], source.config()))
    guard_length(model)
    if vocabulary_size(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {vocabulary_size(tokenizer)} tokens, but the model's vocabulary has "
            f"{model.config.vocab_size}: they do not belong together"
        )
    model.requires_grad_(False)
    return _module_class(cfg)(
        model,
        tokenizer,
        optimizer=cfg["optimizer"],
        gradient_clip_val=cfg["trainer"].get("gradient_clip_val"),
        gradient_checkpointing=cfg["trainer"].get("gradient_checkpointing", False),
        start_token=cfg["dataset"].get("start_token", "auto"),  # the configs of earlier versions do not have it
        seed=cfg["seed"],
    )


def _module_class(cfg: Mapping[str, Any]) -> type[CausalLMModule]:
    if cfg["compressor"]["name"] != "none":
        return CompressionModule
    return CausalLMModule if cfg["adapter"]["name"] == "none" else CrossModelModule


def operate(module: CausalLMModule, cfg: Mapping[str, Any], data: BlockDataModule | None = None) -> None:
    """Apply the config's replacement and placement to the module's model, in place.

    Args:
        data: for placements that measure something on the training data; None: that of the config, if one does.
    """
    _replace(module, cfg)
    if cfg["placement"]["name"] != "none":
        _place(module, cfg, data or build_data_module(cfg, module.tokenizer))


def _replace(module: CausalLMModule, cfg: Mapping[str, Any]) -> None:
    replacement = cfg["replacement"]
    if replacement["name"] == "none":
        return
    torch.manual_seed(cfg["seed"])  # what is drawn anew does not depend on what ran before
    module.surgery = replace_attention(
        module.model,
        replacement["name"],
        resolve_layers(replacement["layers"], shape_of(module.model.config).num_layers),
        replacement["init"],
        split(replacement, surgery_options)[1],
    )


def _place(module: CausalLMModule, cfg: Mapping[str, Any], data: BlockDataModule) -> None:
    """Resolve the config's placement to its table, and put LoRA there."""
    model, name, arguments = module.model, cfg["placement"]["name"], placement_arguments(cfg)
    batches = cfg["placement"].get("batches", PLACEMENT_BATCHES)

    def training_batches() -> Iterator[dict[str, torch.Tensor]]:
        for batch in data.fit_loader(batches, 0, data.settings.batch_size, "placement"):
            yield {key: tensor.to(model.device) for key, tensor in batch.items()}

    scores = []
    if "scores" in parameters(PLACEMENTS.get(name)):
        roles = cfg["placement"].get("roles") or ["attention", "mlp"]
        candidates = linears(model, roles, cfg["placement"].get("layers", "all"))
        torch.manual_seed(cfg["seed"])
        given = cfg["placement"]["score"], model, candidates, training_batches(), _mean_loss
        measured = from_first(lambda: measure_scores(*given))
        arguments["scores"], scores = measured, [(linear, measured[linear.module]) for linear in candidates]
    rows = PLACEMENTS.build(name, model=model, **arguments)
    shared = split(cfg["placement"], placement_options)[0]
    if shared["init"] in CHANGES_WEIGHTS:
        part(module.original, [model.get_submodule(row.module).weight for row in rows])
    torch.manual_seed(cfg["seed"])
    placed = place(model, rows, **shared, batches=training_batches, loss=_mean_loss)
    module.placement = replace(placed, scores=scores)


def _mean_loss(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Negative log-likelihood per scored token of a batch."""
    labels = scored_labels(batch)
    return next_token_nll(model, batch_rows(batch), labels) / (labels[:, 1:] != IGNORED).sum().clamp(min=1)


def build_module(cfg: Any) -> CausalLMModule:
    """See `lightning_modules.build_module`."""
    cfg = exchanged(plain(cfg))
    source = build_source(cfg)
    module = load_language_model(cfg, source, source.tokenizer())
    operate(module, cfg)
    if cfg["adapter"]["name"] != "none":
        from lightning_modules.bridging import bridge_models

        return bridge_models(cfg, module)
    if cfg["compressor"]["name"] != "none":
        from lightning_modules.compressing import compress_models

        return compress_models(cfg, module)
    return module


def load_module(run_dir: str | Path) -> CausalLMModule:
    """See `lightning_modules.load_module`.

    Raises:
        UserError: the folder is no run's, the run trained something but has not finished, or the weights do not fit.
    """
    run_dir = Path(run_dir)
    cfg, result = read_run(run_dir)
    import_plugins(cfg["plugins"])
    source = build_source(cfg)
    module = load_language_model(cfg, source, source.tokenizer())
    _replace(module, cfg)
    of_the_model = set(result.get("stages", {})) - {ADAPTER_STAGE, COMPRESSOR_STAGE}
    if result["status"] != "finished" or of_the_model:  # else nothing of it was trained
        for stage in build_stages(cfg, workspace(module, cfg)).values():
            stage.prepare(module.model)
        if cfg["placement"]["name"] != "none":
            load_adapter(module.model, run_dir / ADAPTER_FOLDER)
        restore(module, run_dir / TRAINED_WEIGHTS)
    if cfg["adapter"]["name"] != "none":
        from lightning_modules.bridging import reload

        reload(module, cfg, run_dir / BRIDGE_WEIGHTS)
    if cfg["compressor"]["name"] != "none":
        from lightning_modules.compressing import reload

        reload(module, cfg, run_dir / BRIDGE_WEIGHTS)
    return module


def read_run(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config of a run, with all groups that there are now, and its result.

    Raises:
        UserError: the folder is no run's, or both say too little.
    """
    for name in ("config.yaml", "result.json"):
        if not (run_dir / name).is_file():
            raise UserError(f"{run_dir} is not a run's folder: it has no {name}")
    result = _read_mapping(run_dir / "result.json", ("status",))
    return {group: {"name": "none"} for group in LATER_GROUPS} | _read_config(run_dir, result), result


def _read_config(run_dir: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a run; where its own file is damaged, as `result.json` holds it too."""
    try:
        return _read_mapping(run_dir / "config.yaml", CONFIG_KEYS)
    except UserError as error:
        if not isinstance(result.get("config"), dict) or not result["config"].keys() >= set(CONFIG_KEYS):
            raise
        log.warning("%s; the config is taken from result.json", error)
        return result["config"]


def _read_mapping(file: Path, keys: Sequence[str]) -> dict[str, Any]:
    """A JSON or YAML file of a run, as plain data. Raises UserError where it is damaged, or lacks one of the keys."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        json_text = file.suffix == ".json"
        content = json.loads(file.read_text()) if json_text else OmegaConf.to_container(OmegaConf.load(file))
    except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: it holds no mapping")
    missing = [key for key in keys if key not in content]
    if missing:
        raise UserError(f"{file} is damaged: it has no {missing[0]!r}")
    return content


def workspace(module: CausalLMModule, cfg: Mapping[str, Any], code: str = "", **of_run: Any) -> Workspace:
    """What the stages of a config share.

    Args:
        code: the version of the code that changes the model.
        of_run: the fields of `Workspace` that a run adds.
    """
    changes = {key: cfg[key] for key in ("replacement", "placement")}
    return Workspace(
        original=module.original,
        tokenizer=module.tokenizer,
        surgery=module.surgery,
        placement=module.placement,
        activations=activation_cache(cfg),
        changes={**changes, "recovery": list(recovery_plan(cfg).items()), "code": code},
        batch_size=cfg["dataset"]["batch_size"],
        loss_chunk_size=cfg["trainer"]["loss_chunk_size"],
        **of_run,
    )


def activation_cache(cfg: Mapping[str, Any], keep: bool = True) -> ActivationCache:
    """The cache of `cfg.activations`; without `keep`, one that computes everything as it is asked for."""
    activations = cfg["activations"]
    return ActivationCache(cfg["cache_dir"], activations["max_gb"], keep and activations["cache"])


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """What a run saved of what it trained.

    Raises:
        UserError: the run has not finished, or the file is damaged.
    """
    if not file.is_file():
        raise UserError(f"{file.parent.parent} has no trained weights ({file.name}): the run has not finished")
    return read_tensors(file)


def restore(module: CausalLMModule, file: Path) -> None:
    """Put the trained weights of a safetensors file into a model that had the same surgery; fp32 stays fp32.

    Raises:
        UserError: as `read_weights`, or the file is of another config.
    """
    trained = read_weights(file)
    parameters = dict(module.model.named_parameters())
    strange = [
        name for name, tensor in trained.items() if parameters.get(name, tensor.new_empty(0)).shape != tensor.shape
    ]
    if strange:
        raise UserError(f"{file} is of another config: {strange[0]!r} does not fit this model")
    part(module.original, [parameters[name] for name in trained])
    for name, tensor in trained.items():
        parameters[name].data = tensor.to(parameters[name].device)


def resolve_dtype(dtype: str, frozen: bool, config: Mapping[str, Any] | None) -> torch.dtype:
    """The dtype of the weights.

    `auto` is fp32, but bf16 (fp16 on a GPU without it) for frozen weights where the device computes it fast and the
    model is wide enough to gain (config None, a model not here yet: it is).
    """
    if dtype == "auto":
        config = config or {}  # scoring needs no role map, so the family may be unknown
        wide = (config.get("hidden_size") or config.get("n_embd") or BFLOAT16_WIDTH) >= BFLOAT16_WIDTH
        return (_two_bytes() or torch.float32) if frozen and wide else torch.float32
    return getattr(torch, dtype)


def _two_bytes() -> torch.dtype | None:
    """The dtype of two bytes that this machine computes fast; on a GPU without bf16 it is fp16."""
    if fast_bfloat16():
        return torch.bfloat16
    return torch.float16 if torch.cuda.is_available() else None


def fast_bfloat16() -> bool:
    """Whether this machine has bf16 arithmetic in hardware (a CPU with avx512_bf16 or AMX, or a GPU)."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def plain(cfg: Any) -> dict[str, Any]:
    """A config as plain dicts and lists; components never see OmegaConf."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else cfg
