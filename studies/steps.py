"""What all studies share: baseline, surgery and its checks, training stage by stage, costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from data_modules.tensor_files import save_weights
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.config import Config
from lightning_modules.load import operate, workspace
from lightning_modules.preflight import check, exact_logits, require
from lightning_modules.stages import STAGES
from lightning_modules.surgery.lora import plain_weights
from lightning_modules.surgery.peft_folder import save_lora_folder
from lightning_modules.surgery.replaced_attention import bias_range
from lightning_modules.training.stage_plan import build_stages
from lightning_modules.training_cost import training_flops
from lightning_modules.weights import LORA_FOLDER, TRAINED_WEIGHTS
from registries.registry import UserError
from studies.progress import say
from studies.report.figures import plot_losses
from studies.run.code_version import run_code
from studies.run.curves import read_curves
from studies.run.placement_table import record_placement
from studies.run.results import read_result
from studies.run.scores import SPLIT_OF, Scores, cached_scores, scoring
from studies.stage_training import train_stage
from studies.study import Study


def score_baseline(study: Study, module: CausalLMModule, identity: Mapping[str, Any]) -> dict[str, Scores]:
    """The scores of the untouched model on validation and test; from the cache where they are known."""
    baselines, record = {}, study.record
    for prefix, split in SPLIT_OF.items():
        key = ["score", identity, scoring(module, study.data, split)]

        def compute(split: str = split) -> Scores:
            say(f"scoring the untouched model on {split}")
            return study.score(module, split)

        scores = baselines[prefix] = cached_scores(study.cfg.cache_dir, key, compute)
        machine = {"seconds": scores.seconds, "tokens_per_s": scores.tokens_per_s}
        baseline = {f"{prefix}{name}": value for name, value in {**scores.metrics, **machine}.items()}
        record.folder.result["baseline"] |= baseline
        scores.record(record, f"baseline/{prefix}")
    return baselines


def operate_and_check(study: Study, module: CausalLMModule) -> None:
    """Operate, check what the operation claims, and score what was replaced before any training."""
    cfg, record = study.cfg, study.record
    if cfg.replacement is None and cfg.placement is None and cfg.expansion is None:
        return
    if cfg.preflight:
        before = exact_logits(module.model)
    operate(module, cfg, study.data)
    surgery, placement = module.surgery, module.placement
    if surgery is not None:
        say(f"replaced the attention of layers {surgery.layers} by {cfg.replacement.name}")
        for note in surgery.notes:
            say(note)
        record.folder.result["layers"], record.folder.result["notes"] = surgery.layers, surgery.notes
        spread = bias_range(module.model, surgery.layers, study.data.settings.block_size)
        if spread is not None:
            record.folder.record(**{"replacement/bias_range": spread})
    if placement is not None:
        record_placement(record, cfg.placement.name, placement)
    if cfg.preflight:
        claimed = all(part is None or part.keeps_function for part in (surgery, module.expansion))
        results = check(module.model, before if claimed else None)
        record.folder.result["preflight"] = results
        record.folder.write()
        require(results)
    if module.expansion is not None:
        say(f"the model has {sum(map(torch.numel, module.model.parameters())):,} parameters")
    if (surgery or module.expansion) is not None and "swap/loss" not in record.metrics:
        say("scoring after surgery, before training")
        study.score(module, "validation").record(record, "swap/")


def recover(study: Study, module: CausalLMModule, identity: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Train the stages of the config, score between them, and save what they trained.

    Returns:
        The names of the stages, and name -> parameter of what was trained.
    """
    record = study.record
    rows = {"train_blocks": study.data.train_blocks, "train_positions": study.data.positions("train")}
    rows["earlier_flops"] = _earlier_flops(study.cfg)
    stages = build_stages(study.cfg, workspace(module, study.cfg, run_code(study.cfg), identity=identity, **rows))
    trained: set[int] = set()
    for name, stage in stages.items():
        trained |= {id(parameter) for parameter in train_stage(study, module, name, stage).values()}
        last = name == list(stages)[-1]  # its score is the final one
        if not last and f"{name}/loss" not in record.metrics:
            say(f"scoring after {name}")
            study.score(module, "validation").record(record, f"{name}/")
    # By identity: a later stage may have wrapped a layer, and so renamed what an earlier one trained.
    parameters = {name: parameter for name, parameter in module.model.named_parameters() if id(parameter) in trained}
    if study.cfg.expands_run:  # what that run trained is in no loader
        _save_trained(study, module, dict(module.model.named_parameters()))
    elif parameters:
        _save_trained(study, module, parameters)
    return list(stages), parameters


def _earlier_flops(cfg: Config) -> float:
    """What the training of a run took, where its larger model is trained from scratch on as many operations.

    Raises:
        UserError: the run does not say it.
    """
    if cfg.expansion is None or cfg.expansion.mode != "scratch":
        return 0.0
    flops = read_result(Path(cfg.expansion.run))["metrics"].get("train/flops")
    if flops is None:
        raise UserError(
            f"{cfg.expansion.run} does not say what its training took (train/flops), as it was made by an earlier "
            "version: train it again, or leave the comparison out (controls=[original])"
        )
    return flops


def _save_trained(study: Study, module: CausalLMModule, trained: Mapping[str, Any]) -> None:
    """Save the trained weights; placed LoRA as a folder that PEFT loads."""
    folder = study.record.folder.path
    if module.placement is not None:
        settings = study.cfg.model
        base = settings.arguments.get("path") or getattr(module.model.config, "name_or_path", None) or settings.name
        save_lora_folder(module.model, module.placement, folder / LORA_FOLDER, str(base))
        trained = plain_weights(module.model, module.placement, trained)
    save_weights(trained, folder / TRAINED_WEIGHTS)


def record_costs(study: Study, module: CausalLMModule, trained: Mapping[str, Any], speed: Scores) -> None:
    """Record parameters, tokens, time, throughput and memory.

    Floating-point operations of training are counted as if all weights were trained.
    """
    record = study.record
    done = record.folder.result.get("stages", {})
    tokens = sum(
        stage["tokens"] for name, stage in done.items() if name in STAGES and STAGES.get(name).scope == "model"
    )
    frozen = module.expansion.frozen_among(module.trained_parameters()) if module.expansion else 0
    costs = {
        "train/tokens": tokens,
        "train/flops": tokens * training_flops(module.model, study.data.settings.block_size),
        "params/trainable": sum(parameter.numel() for parameter in trained.values()) - frozen,
        "params/total": sum(parameter.numel() for parameter in module.model.parameters()),
        **({"params/lora": sum(row.parameters for row in module.placement.rows)} if module.placement else {}),
        "time/eval_s": speed.seconds,
        "throughput/eval_tokens_per_s": speed.tokens_per_s,
        "time/train_s": sum(stage["seconds"] for stage in done.values()),
        "memory/peak_mb": max(record.heartbeat.peak_mb(), record.metrics.get("memory/peak_mb", 0.0)),
    }
    for name, stage in done.items():
        label = "train" if name == "next_token" else name
        costs[f"throughput/{label}_tokens_per_s"] = stage["tokens_per_s"]
    record.folder.record(**costs)


def plot_curves(study: Study, stages: list[str]) -> None:
    """The training curves, with the losses of the model's states as levels."""
    record, names = study.record, ("baseline", "swap", *stages[:-1], "val")
    levels = {name: record.metrics[f"{name}/loss"] for name in names if f"{name}/loss" in record.metrics}
    curves = {name: points for name, points in read_curves(record.folder.path).items() if name.endswith("/loss")}
    plot_losses(curves, levels, record.folder.path / "figures" / "loss.png")
