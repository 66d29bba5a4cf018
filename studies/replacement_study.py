"""The study of one language model: baseline, surgery, recovery, final score."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data_modules.block_data_module import BlockDataModule
from data_modules.token_cache import tensors_sha256
from lightning_modules.building import TRAINED_WEIGHTS, load_language_model, operate
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.preflight import logits, preflight, probe, require
from lightning_modules.samples import continue_texts
from lightning_modules.stages import STAGES, Stage
from lightning_modules.surgery import attention_parameters
from lightning_modules.training import evaluate, fit
from registries.registry import UserError
from studies.curves import read_curves
from studies.display import say, show_parameters, show_scores
from studies.figures import plot_losses
from studies.recording import Record
from studies.run_folder import write_text
from studies.scores import cached

SPLITS = {"": "validation", "test/": "test"}  # prefix of a metric's name -> the split it is measured on


def study(cfg: Mapping[str, Any], source: Any, tokenizer: Any, data: BlockDataModule, record: Record) -> None:
    """Score the model, operate, train stage by stage, score again; everything goes into `record`."""
    say("loading the model")
    module = load_language_model(cfg, source, tokenizer)
    module.measure(data.token_bytes, data.position_groups())
    _baseline(cfg, module, data, record)
    _surgery(cfg, module, data, record)
    trained: dict[str, Any] = {}
    for name, stage in _stages(cfg, module, data).items():
        trained |= _train(cfg, module, data, record, name, stage)
    _final(cfg, module, data, record, trained)


def _baseline(cfg: Mapping[str, Any], module: CausalLMModule, data: BlockDataModule, record: Record) -> None:
    """The untouched model: scores on validation and test, and samples; from the cache where they are known."""
    weights, samples = tensors_sha256(dict(module.model.named_parameters())), cfg["samples"]
    precision = cfg["trainer"]["precision"]
    for prefix, split in SPLITS.items():
        say(f"scoring the untouched model on {split}")
        key = ["score", weights, tensors_sha256({"blocks": data.blocks(split)}), precision, data.settings.batch_size]
        scores, _ = cached(cfg["cache_dir"], key, lambda split=split: _score(cfg, module, data, split))
        record.folder.result["baseline"] |= {f"{prefix}{name}": value for name, value in scores.items()}
        record.folder.record(**{f"baseline/{prefix}{name}": value for name, value in _comparable(scores).items()})
    if samples["max_new_tokens"] and samples["prompts"]:
        say("continuing the prompts with the untouched model")
        texts, _ = cached(cfg["cache_dir"], ["samples", weights, samples], lambda: {"texts": _samples(cfg, module)})
        _write_samples(cfg, record, "before", texts["texts"])


def _surgery(cfg: Mapping[str, Any], module: CausalLMModule, data: BlockDataModule, record: Record) -> None:
    """Operate, check what the operation claims, and score the result before any training."""
    before = logits(module.model, probe(module.model))
    operate(module, cfg)
    surgery = module.surgery
    if surgery is None:
        return
    say(f"replaced the attention of layers {surgery.layers} by {cfg['replacement']['name']}")
    for note in surgery.notes:
        say(note)
    record.folder.result["layers"], record.folder.result["notes"] = surgery.layers, surgery.notes
    if cfg["preflight"]:
        results = preflight(module.model, before if surgery.keeps_function else None)
        record.folder.result["preflight"] = results
        record.folder.write()
        require(results)
    if "swap/loss" not in record.metrics:
        say("scoring after surgery, before training")
        _record_scores(record, "swap/", _score(cfg, module, data, "validation"))


def _stages(cfg: Mapping[str, Any], module: CausalLMModule, data: BlockDataModule) -> dict[str, Stage]:
    """The stages of `recovery=none`: layer-wise transfer, then next-token training."""
    stages: dict[str, Stage] = {}
    surgery, replacement, trainer = module.surgery, cfg["replacement"], cfg["trainer"]
    if surgery is not None and replacement["transfer_steps"]:
        blocks = replacement["transfer_batch_size"]
        stages["transfer"] = STAGES.build(
            "transfer",
            originals=surgery.originals,
            steps=replacement["transfer_steps"],
            blocks_per_step=blocks,
            blocks_per_pass=blocks,
            lr=replacement["transfer_lr"],
        )
    blocks = data.settings.batch_size * trainer["accumulate_grad_batches"]
    steps = _next_token_steps(trainer, len(data.train_blocks), blocks)
    if steps and (surgery is not None or not cfg["model"]["freeze"]):
        stages["next_token"] = STAGES.build(
            "next_token",
            select=(lambda model: attention_parameters(model, surgery.layers))
            if cfg["model"]["freeze"]
            else (lambda model: dict(model.named_parameters())),
            steps=steps,
            blocks_per_step=blocks,
            blocks_per_pass=data.settings.batch_size,
            lr=cfg["optimizer"]["lr"],
        )
    if not stages:
        say("nothing to train: no layer is replaced and model.freeze is true, or no steps are asked for")
    return stages


def _next_token_steps(trainer: Mapping[str, Any], train_blocks: int, blocks_per_step: int) -> int:
    limits = [trainer["max_steps"]] if trainer["max_steps"] >= 0 else []
    if trainer["max_epochs"]:
        limits.append(math.ceil(trainer["max_epochs"] * train_blocks / blocks_per_step))
    return min(limits)


def _train(
    cfg: Mapping[str, Any], module: CausalLMModule, data: BlockDataModule, record: Record, name: str, stage: Stage
) -> dict[str, Any]:
    """Train one stage, or take what it trained from the folder if it was finished before. Returns its parameters."""
    module.begin(name, stage)
    parameters = module.trained_parameters()
    folder = record.folder.path / "checkpoints" / name
    done = record.folder.result.setdefault("stages", {})
    first_step = sum(earlier["steps"] for key, earlier in done.items() if key != name)
    if name in done:
        for key, tensor in load_file(folder / "weights.safetensors").items():
            parameters[key].data.copy_(tensor)
    else:
        show_parameters(name, parameters)
        start = _completed_steps(folder)
        since = f", from step {start} on" if start else ""
        say(f"{name}: {stage.steps} steps of {stage.blocks_per_step} x {data.settings.block_size} tokens{since}")
        for logger in record.loggers:
            logger.first_step = first_step
        loader = data.fit_loader(stage.steps, start, stage.blocks_per_step, name)
        clock = fit(module, loader, data.val_dataloader(), cfg["trainer"], folder, record.loggers)
        _save(parameters, folder / "weights.safetensors")
        done[name] = {
            "steps": stage.steps,
            "trained": {key: list(parameter.shape) for key, parameter in parameters.items()},
            "seconds": clock.seconds,
            "tokens_per_s": clock.tokens_per_s,
        }
        record.folder.write()
        (folder / "last.ckpt").unlink(missing_ok=True)  # it would only fill the disk: the stage is done
    if name == "transfer" and "transfer/loss" not in record.metrics:
        say("scoring after the transfer")
        _record_scores(record, "transfer/", _score(cfg, module, data, "validation"))
    return parameters


def _completed_steps(folder: Path) -> int:
    """Steps that the checkpoint of a stage has behind it."""
    import pickle

    import torch

    file = folder / "last.ckpt"
    if not file.is_file():
        return 0
    try:
        return torch.load(file, weights_only=True, mmap=True)["global_step"]
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        raise UserError(f"the checkpoint {file} is damaged ({error}); remove it to start its stage anew") from error


def _final(
    cfg: Mapping[str, Any], module: CausalLMModule, data: BlockDataModule, record: Record, trained: dict[str, Any]
) -> None:
    """Save the trained weights; score on validation and test; samples, figure, and what it all cost."""
    result = record.folder.result
    if trained:
        _save(trained, record.folder.path / TRAINED_WEIGHTS)
        for prefix, split in (("val/", "validation"), ("test/", "test")):
            say(f"final score on {split}")
            scores = _score(cfg, module, data, split)
            if split == "validation":
                speed = scores
            _record_scores(record, prefix, scores)
        if (record.folder.path / "samples.json").is_file():
            say("continuing the prompts with the trained model")
            _write_samples(cfg, record, "after", _samples(cfg, module))
    else:
        speed = result["baseline"]
        for prefix, place in (("val/", ""), ("test/", "test/")):
            scores = {
                name: value for name, value in result["baseline"].items() if name.startswith("test/") == bool(place)
            }
            _record_scores(record, prefix, {name.removeprefix(place): value for name, value in scores.items()})
    stages = result.get("stages", {})
    costs = {
        "params/trainable": sum(parameter.numel() for parameter in trained.values()),
        "params/total": sum(parameter.numel() for parameter in module.model.parameters()),
        "time/eval_s": speed["seconds"],
        "throughput/eval_tokens_per_s": speed["tokens_per_s"],
        "time/train_s": sum(stage["seconds"] for stage in stages.values()),
        "memory/peak_mb": max(record.heartbeat.peak_mb(), record.metrics.get("memory/peak_mb", 0.0)),
    }
    names = {"next_token": "throughput/train_tokens_per_s", "transfer": "throughput/transfer_tokens_per_s"}
    costs |= {names[name]: stage["tokens_per_s"] for name, stage in stages.items()}
    record.folder.record(**costs)
    levels = {
        name.removesuffix("/loss"): record.metrics[name]
        for name in ("baseline/loss", "swap/loss", "transfer/loss", "val/loss")
        if name in record.metrics
    }
    curves = {name: points for name, points in read_curves(record.folder.path).items() if name.endswith("/loss")}
    plot_losses(curves, levels, record.folder.path / "figures" / "loss.png")
    show_scores(record.metrics)


def _score(cfg: Mapping[str, Any], module: CausalLMModule, data: BlockDataModule, split: str) -> dict[str, float]:
    return evaluate(module, data.loader(split), cfg["trainer"])


def _comparable(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores without what the machine adds."""
    return {name: value for name, value in scores.items() if name not in ("seconds", "tokens_per_s")}


def _record_scores(record: Record, prefix: str, scores: Mapping[str, float]) -> None:
    """Record scores under a prefix, with the ratio of perplexities to the untouched model's on the same tokens."""
    baseline = record.metrics["baseline/test/ppl" if prefix == "test/" else "baseline/ppl"]
    metrics = {f"{prefix}{name}": value for name, value in _comparable(scores).items()}
    record.folder.record(**metrics, **{f"{prefix}ppl_ratio": scores["ppl"] / baseline})


def _samples(cfg: Mapping[str, Any], module: CausalLMModule) -> list[str]:
    samples = cfg["samples"]
    return continue_texts(module.model, module.tokenizer, samples["prompts"], samples["max_new_tokens"])


def _write_samples(cfg: Mapping[str, Any], record: Record, when: str, texts: list[str]) -> None:
    file = record.folder.path / "samples.json"
    samples = (
        json.loads(file.read_text()) if file.is_file() else [{"prompt": text} for text in cfg["samples"]["prompts"]]
    )
    for sample, text in zip(samples, texts, strict=True):
        sample[when] = text
    write_text(file, json.dumps(samples, indent=2, ensure_ascii=False))


def _save(parameters: Mapping[str, Any], file: Path) -> None:
    """Write weights as safetensors, aside and renamed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    try:
        save_file({name: parameter.detach().contiguous() for name, parameter in parameters.items()}, partial)
        partial.replace(file)
    except SafetensorError as error:
        if "os error 28" in str(error):  # a full disk is told in words only
            raise OSError(errno.ENOSPC, str(error)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)
