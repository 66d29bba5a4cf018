"""From a config or the folder of a run to a LightningModule: load, operate, restore."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch

from data_modules import build_data_module
from data_modules.batches import ModelInput, scored_labels
from data_modules.data_module import BlockDataModule
from data_modules.tokens import vocabulary_size
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.config import TWO_MODEL_MODULES, Config, read_config
from lightning_modules.dtypes import resolve_dtype
from lightning_modules.length_guard import guard_length
from lightning_modules.nll import IGNORED
from lightning_modules.processes import from_first
from lightning_modules.saved_run import read_run
from lightning_modules.stages.stage import Workspace
from lightning_modules.surgery.expanded_model import expand
from lightning_modules.surgery.layer_scores import measure_scores
from lightning_modules.surgery.lora import place_lora
from lightning_modules.surgery.peft_folder import load_lora_folder
from lightning_modules.surgery.replaced_attention import replace_attention
from lightning_modules.surgery.twins import separate
from lightning_modules.training.objectives import next_token_nll
from lightning_modules.training.stage_plan import build_stages, recovery_plan
from lightning_modules.training_cost import training_flops
from lightning_modules.weights import (
    BRIDGE_WEIGHTS,
    LORA_FOLDER,
    TRAINED_WEIGHTS,
    load_into,
    restore,
    saved_tokenizer,
)
from registries import PLACEMENTS, UserError
from registries.layers import resolve_layers
from registries.model_shape import shape_of
from registries.placements.placement import CHANGES_WEIGHTS, linears
from registries.plugins import import_plugins
from registries.registry import parameters

PLACEMENT_BATCHES = 8  # of training data, where an init looks at it


def load_language_model(cfg: Config, loader: Any, tokenizer: Any) -> CausalLMModule:
    """The model as it is, before any surgery."""
    torch.manual_seed(cfg.seed)  # for a model with random weights
    dtype = cfg.model.dtype
    if dtype == "auto" and cfg.placement is not None and cfg.placement.init in CHANGES_WEIGHTS:
        dtype = "float32"  # frozen weights change, and would lose that to rounding
    if dtype == "auto" and cfg.expansion is not None:
        dtype = "float32"  # in which the new blocks train, between frozen ones
    model = loader.model(resolve_dtype(dtype, cfg.model.freeze, loader.config()))
    guard_length(model)
    if vocabulary_size(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {vocabulary_size(tokenizer)} tokens, but the model's vocabulary has "
            f"{model.config.vocab_size}: they do not belong together"
        )
    model.requires_grad_(False)
    return CausalLMModule(
        model,
        tokenizer,
        optimizer=cfg.optimizer,
        gradient_clip_val=cfg.trainer.gradient_clip_val,
        gradient_checkpointing=cfg.trainer.gradient_checkpointing,
        start_token=cfg.dataset.start_token,
        seed=cfg.seed,
    )


def operate(module: CausalLMModule, cfg: Config, data: BlockDataModule | None = None) -> None:
    """Apply the config's expansion, replacement and placement to the module's model.

    Args:
        data: for placements that measure something on the training data; None: that of the config, if one does.
    """
    _expand(module, cfg)
    _replace(module, cfg)
    if cfg.placement is not None:
        _place(module, cfg, data or build_data_module(cfg.plain, module.tokenizer))


def _expand(module: CausalLMModule, cfg: Config) -> None:
    if cfg.expansion is None:
        return
    torch.manual_seed(cfg.seed)
    module.model, module.expansion = expand(module.model, cfg.expansion)


def _replace(module: CausalLMModule, cfg: Config) -> None:
    replacement = cfg.replacement
    if replacement is None:
        return
    torch.manual_seed(cfg.seed)  # what is drawn anew does not depend on what ran before
    layers = resolve_layers(replacement.layers, shape_of(module.model.config).num_layers)
    module.surgery = replace_attention(module.model, replacement.name, layers, replacement.init, replacement.arguments)


def _place(module: CausalLMModule, cfg: Config, data: BlockDataModule) -> None:
    """Resolve the config's placement to its table, and put LoRA there."""
    model, settings, arguments = module.model, cfg.placement, cfg.placement.component_arguments()
    batches = settings.arguments.get("batches", PLACEMENT_BATCHES)

    def training_batches() -> Iterator[dict[str, torch.Tensor]]:
        for batch in data.fit_loader(batches, 0, data.settings.batch_size, "placement"):
            yield {key: tensor.to(model.device) for key, tensor in batch.items()}

    scores = []
    if "scores" in parameters(PLACEMENTS.get(settings.name)):
        roles = settings.arguments.get("roles") or ["attention", "mlp"]
        candidates = linears(model, roles, settings.arguments.get("layers", "all"))
        torch.manual_seed(cfg.seed)
        score = settings.arguments["score"]
        measured = from_first(lambda: measure_scores(score, model, candidates, training_batches(), _mean_loss))
        arguments["scores"], scores = measured, [(linear, measured[linear.module]) for linear in candidates]
    rows = PLACEMENTS.build(settings.name, model=model, **arguments)
    if settings.init in CHANGES_WEIGHTS:
        separate(module.original, [model.get_submodule(row.module).weight for row in rows])
    torch.manual_seed(cfg.seed)
    options = {key: getattr(settings, key) for key in ("alpha", "dropout", "variant", "init")}
    placed = place_lora(model, rows, **options, batches=training_batches, loss=_mean_loss)
    module.placement = replace(placed, scores=scores)


def _mean_loss(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Negative log-likelihood per scored token of a batch."""
    labels = scored_labels(batch)
    return next_token_nll(model, ModelInput.of(batch), labels) / (labels[:, 1:] != IGNORED).sum().clamp(min=1)


def build_module(cfg: Any) -> CausalLMModule:
    """See `lightning_modules.build_module`."""
    cfg = read_config(cfg)
    loader = cfg.model_loader()
    module = load_language_model(cfg, loader, cfg.tokenizer_of(loader))
    operate(module, cfg)
    return _with_source(module, cfg)


def load_module(run_dir: str | Path) -> CausalLMModule:
    """See `lightning_modules.load_module`.

    Raises:
        UserError: the folder is no run's, the run trained something but has not finished, or the weights do not fit.
    """
    run_dir = Path(run_dir)
    cfg, result = read_run(run_dir)
    import_plugins(cfg.plugins)
    loader = cfg.untrained_loader()  # the run saved all that is not in it
    module = load_language_model(cfg, loader, saved_tokenizer(run_dir) or cfg.tokenizer_of(loader))
    _expand(module, cfg)
    _replace(module, cfg)
    of_the_model = result.get("stages", {}).keys() - TWO_MODEL_MODULES.keys()
    if result["status"] != "finished" or of_the_model or cfg.expands_run:  # else nothing of it was trained
        for stage in build_stages(cfg, workspace(module, cfg)).values():
            stage.prepare(module.model)
        if cfg.placement is not None:
            load_lora_folder(module.model, run_dir / LORA_FOLDER)
        restore(module, run_dir / TRAINED_WEIGHTS)
    module = _with_source(module, cfg)
    if cfg.reads_two_models:
        load_into(module.between, run_dir / BRIDGE_WEIGHTS)
    return module


def _with_source(module: CausalLMModule, cfg: Config) -> CausalLMModule:
    """The module that reads a source model too, where the config has one; nothing of it is fitted or trained yet."""
    for group, builder in TWO_MODEL_MODULES.items():
        if getattr(cfg, group) is not None:
            return resolve_name(builder)(cfg, module)
    return module


def workspace(module: CausalLMModule, cfg: Config, code: str = "", **of_run: Any) -> Workspace:
    """What the stages of a config share.

    Args:
        code: the version of the code that changes the model.
        of_run: the fields of `Workspace` that a run adds.
    """
    changes = {key: cfg.plain.get(key) for key in ("replacement", "placement", "expansion")}
    return Workspace(
        original=module.original,
        tokenizer=module.tokenizer,
        surgery=module.surgery,
        placement=module.placement,
        expansion=module.expansion,
        activations=cfg.activation_cache(),
        changes={**changes, "recovery": list(recovery_plan(cfg).items()), "code": code},
        block_size=cfg.dataset.block_size,
        batch_size=cfg.dataset.batch_size,
        loss_chunk_size=cfg.trainer.loss_chunk_size,
        flops=training_flops(module.model, cfg.dataset.block_size),
        **of_run,
    )
