"""The study of one language model: baseline, surgery and placement, training stage by stage, final score."""

from __future__ import annotations

import errno
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback
from safetensors import SafetensorError
from safetensors.torch import save_file

from data_modules.block_data_module import BlockDataModule
from data_modules.token_cache import tensors_sha256
from lightning_modules.building import (
    ADAPTER_FOLDER,
    TRAINED_WEIGHTS,
    load_language_model,
    operate,
    read_weights,
    workspace,
)
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.peft_folder import save_adapter
from lightning_modules.placement import plain_weights
from lightning_modules.preflight import check, exact_logits, require, require_own_logits
from lightning_modules.processes import from_first
from lightning_modules.recovery import build_stages, training_notes
from lightning_modules.stages import Stage
from lightning_modules.surgery import bias_range
from lightning_modules.training import fit
from registries.partial_files import partial_file
from registries.registry import UserError
from studies.code import run_code
from studies.curves import read_curves
from studies.display import say, show_parameters
from studies.figures import plot_losses
from studies.fingerprint import model_account
from studies.placements import record_placement
from studies.recording import Record
from studies.run_folder import write_text
from studies.scores import SPLITS, Scores, cached, cached_scores, score, scoring

CHECKPOINT_KEYS = ("global_step", "state_dict", "stage", "optimizer_states", "lr_schedulers", "loops", "callbacks")


def study(cfg: Mapping[str, Any], source: Any, tokenizer: Any, data: BlockDataModule, record: Record) -> None:
    """Score the model, operate, train stage by stage, score again; everything goes into `record`."""
    say("loading the model")
    module = load_language_model(cfg, source, tokenizer)
    require_own_logits(module.model)
    module.measure(data.token_bytes, data.position_groups())
    identity = model_account(module.original, tokenizer, cfg)
    baselines = score_baseline(cfg, module, data, record, identity)
    sample_baseline(cfg, module, data, record, identity)
    operate_and_check(cfg, module, data, record)
    stages, trained = recover(cfg, module, data, record, identity)
    if trained:
        speed = _final(cfg, module, data, record, stages[-1])
    else:
        say("nothing to train: nothing is replaced or placed and model.freeze is true, or no steps are asked for")
        speed = _unchanged(record, baselines)
    record_costs(module, record, trained, speed)
    plot_curves(record, stages)


def score_baseline(
    cfg: Mapping[str, Any], module: CausalLMModule, data: BlockDataModule, record: Record, identity: Mapping[str, str]
) -> dict[str, Scores]:
    """The scores of the untouched model on validation and test; from the cache where they are known."""
    baselines = {}
    for prefix, split in SPLITS.items():
        key = ["score", identity, scoring(module, data, split)]

        def compute(split: str = split) -> Scores:
            say(f"scoring the untouched model on {split}")
            return score(cfg, module, data, split)

        scores = baselines[prefix] = cached_scores(cfg["cache_dir"], key, compute)
        machine = {"seconds": scores.seconds, "tokens_per_s": scores.tokens_per_s}
        baseline = {f"{prefix}{name}": value for name, value in {**scores.metrics, **machine}.items()}
        record.folder.result["baseline"] |= baseline
        scores.record(record, f"baseline/{prefix}")
    return baselines


def sample_baseline(
    cfg: Mapping[str, Any], module: CausalLMModule, data: BlockDataModule, record: Record, identity: Mapping[str, str]
) -> None:
    """What the untouched model makes of the prompts; from the cache where it is known."""
    samples = cfg["samples"]
    if samples["max_new_tokens"] and samples["prompts"]:
        say("continuing the prompts with the untouched model")
        key = ["samples", identity, samples, model_prompts(cfg, data), module.start]
        texts = cached(cfg["cache_dir"], key, lambda: {"texts": continue_prompts(cfg, module, data)})
        write_samples(cfg, record, "before", texts["texts"])


def operate_and_check(cfg: Mapping[str, Any], module: CausalLMModule, data: BlockDataModule, record: Record) -> None:
    """Operate, check what the operation claims, and score what was replaced before any training."""
    if cfg["replacement"]["name"] == cfg["placement"]["name"] == "none":
        return
    if cfg["preflight"]:
        before = exact_logits(module.model)
    operate(module, cfg, data)
    surgery, placement = module.surgery, module.placement
    if surgery is not None:
        say(f"replaced the attention of layers {surgery.layers} by {cfg['replacement']['name']}")
        for note in surgery.notes:
            say(note)
        record.folder.result["layers"], record.folder.result["notes"] = surgery.layers, surgery.notes
        spread = bias_range(module.model, surgery.layers, data.settings.block_size)
        if spread is not None:
            record.folder.record(**{"replacement/bias_range": spread})
    if placement is not None:
        record_placement(record, cfg["placement"]["name"], placement)
    if cfg["preflight"]:
        results = check(module.model, before if surgery is None or surgery.keeps_function else None)
        record.folder.result["preflight"] = results
        record.folder.write()
        require(results)
    if surgery is not None and "swap/loss" not in record.metrics:
        say("scoring after surgery, before training")
        score(cfg, module, data, "validation").record(record, "swap/")


def recover(
    cfg: Mapping[str, Any], module: CausalLMModule, data: BlockDataModule, record: Record, identity: Mapping[str, str]
) -> tuple[list[str], dict[str, Any]]:
    """Train the stages of the config, score between them, and save what they trained.

    Returns:
        The names of the stages, and name -> parameter of what was trained.
    """
    rows = {"train_blocks": data.train_blocks, "train_positions": data.positions("train")}
    stages = build_stages(cfg, workspace(module, cfg, run_code(cfg), identity=identity, **rows))
    trained: set[int] = set()
    for name, stage in stages.items():
        trained |= {id(parameter) for parameter in train_stage(cfg, module, data, record, name, stage).values()}
        last = name == list(stages)[-1]  # its score is the final one
        if not last and f"{name}/loss" not in record.metrics:
            say(f"scoring after {name}")
            score(cfg, module, data, "validation").record(record, f"{name}/")
    # By identity: a later stage may have wrapped a layer, and so renamed what an earlier one trained.
    parameters = {name: parameter for name, parameter in module.model.named_parameters() if id(parameter) in trained}
    if parameters:
        _save_trained(cfg, module, record, parameters)
    return list(stages), parameters


def train_stage(
    cfg: Mapping[str, Any],
    module: CausalLMModule,
    data: BlockDataModule,
    record: Record,
    name: str,
    stage: Stage,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Train one stage, or take what it trained from the folder if it was finished before. Returns its parameters."""
    module.begin(name, stage)
    parameters = module.trained_parameters()
    folder = record.folder.path / "checkpoints" / name
    done = record.folder.result.setdefault("stages", {})
    first_step = sum(earlier["steps"] for key, earlier in done.items() if key != name)
    if name in done:
        restore_stage(parameters, folder / "weights.safetensors")
    else:
        show_parameters(name, parameters)
        start = _completed_steps(folder)
        since = f", from step {start} on" if start else ""
        say(f"{name}: {stage.steps} steps of {stage.batch_size} x {data.settings.block_size} tokens{since}")
        notes = training_notes(name, stage, cfg["trainer"], len(data.train_blocks))
        for note in notes:
            say(note)
        for logger in record.loggers:
            logger.first_step = first_step
        loader = data.fit_loader(stage.steps, start, stage.batch_size, name)
        clock = fit(module, loader, data.val_dataloader(), cfg["trainer"], folder, record.loggers, callbacks)
        save_weights(parameters, folder / "weights.safetensors")
        if stage.scope == "layers":
            record.folder.record(**from_first(lambda: _held_out(module, stage, data, name)))
        done[name] = {
            "steps": module.trainer.global_step,  # fewer than planned where training stopped early
            "trained": {key: list(parameter.shape) for key, parameter in parameters.items()},
            "seconds": clock.seconds,
            "tokens_per_s": clock.tokens_per_s,
            "notes": notes,
        }
        record.folder.write()
        (folder / "last.ckpt").unlink(missing_ok=True)  # it would only fill the disk: the stage is done
    return parameters


def _held_out(module: CausalLMModule, stage: Stage, data: BlockDataModule, name: str) -> dict[str, float]:
    """The stage's loss, and its parts by layer, on the validation blocks; recorded as `<stage>/error...`."""
    import torch

    module.model.eval()
    sums, count = Counter(), 0
    with torch.no_grad():
        for batch in data.val_dataloader():
            batch = {key: tensor.to(module.model.device) for key, tensor in batch.items()}
            _, terms, parts = stage.loss(module.model, batch)
            count += terms
            sums.update(parts)
    return {f"{name}/{part}": (value / count).item() for part, value in sums.items()}


def restore_stage(parameters: Mapping[str, Any], file: Path) -> None:
    """Put the weights of a stage that was finished before into its parameters, in place.

    Raises:
        UserError: the file is not there, damaged, or of other parameters.
    """
    remedy = f"remove {file.parent.parent.parent} and run the study again"
    if not file.is_file():
        raise UserError(f"the weights {file} of a finished stage are gone; {remedy}")
    try:
        weights = read_weights(file)
    except UserError as error:
        raise UserError(f"{error}, or {remedy}") from error
    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (weights, parameters)]
    if shapes[0] != shapes[1]:
        raise UserError(f"the weights {file} are of other parameters than this stage trains; {remedy}")
    for name, tensor in weights.items():
        parameters[name].data.copy_(tensor)


def _completed_steps(folder: Path) -> int:
    """Steps that the checkpoint of a stage has behind it.

    A checkpoint is a zip archive with a checksum of every file in it, which torch does not compare when it reads.

    Raises:
        UserError: it is damaged.
    """
    import pickle

    import torch

    file = folder / "last.ckpt"
    if not file.is_file():
        return 0
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the content of {damaged} does not fit its checksum")
        checkpoint = torch.load(file, weights_only=True, mmap=True)
        missing = [key for key in CHECKPOINT_KEYS if key not in checkpoint]
        if missing:
            raise KeyError(*missing)
        return checkpoint["global_step"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        reason = error
    except (zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, EOFError) as error:
        reason = error
    raise UserError(f"the checkpoint {file} is damaged ({reason}); remove it to start its stage anew") from reason


def _final(
    cfg: Mapping[str, Any],
    module: CausalLMModule,
    data: BlockDataModule,
    record: Record,
    last_stage: str,
) -> Scores:
    """Score on validation (what is returned) and test; samples."""
    say("final score on validation")
    scores = score(cfg, module, data, "validation")
    scores.record(record, f"{last_stage}/")
    scores.record(record, "val/")
    say("final score on test")
    score(cfg, module, data, "test").record(record, "test/")
    if (record.folder.path / "samples.json").is_file():
        say("continuing the prompts with the trained model")
        write_samples(cfg, record, "after", continue_prompts(cfg, module, data))
    return scores


def _save_trained(cfg: Mapping[str, Any], module: CausalLMModule, record: Record, trained: Mapping[str, Any]) -> None:
    """Save the trained weights; placed LoRA as a folder that PEFT loads."""
    if module.placement is not None:
        base = cfg["model"].get("path") or getattr(module.model.config, "name_or_path", None) or cfg["model"]["name"]
        save_adapter(module.model, module.placement, record.folder.path / ADAPTER_FOLDER, str(base))
        trained = plain_weights(module.model, module.placement, trained)
    save_weights(trained, record.folder.path / TRAINED_WEIGHTS)


def _unchanged(record: Record, baselines: Mapping[str, Scores]) -> Scores:
    """Where nothing was trained, the final scores are those of the untouched model."""
    for prefix, scores in baselines.items():
        scores.record(record, prefix or "val/")
    return baselines[""]


def record_costs(module: CausalLMModule, record: Record, trained: Mapping[str, Any], speed: Scores) -> None:
    """Record parameters, time, throughput and memory."""
    done = record.folder.result.get("stages", {})
    costs = {
        "params/trainable": sum(parameter.numel() for parameter in trained.values()),
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


def plot_curves(record: Record, stages: list[str]) -> None:
    """The training curves, with the losses of the model's states as levels."""
    names = ("baseline", "swap", *stages[:-1], "val")
    levels = {name: record.metrics[f"{name}/loss"] for name in names if f"{name}/loss" in record.metrics}
    curves = {name: points for name, points in read_curves(record.folder.path).items() if name.endswith("/loss")}
    plot_losses(curves, levels, record.folder.path / "figures" / "loss.png")


def continue_prompts(cfg: Mapping[str, Any], module: CausalLMModule, data: BlockDataModule) -> list[str]:
    return from_first(lambda: module.continue_texts(model_prompts(cfg, data), cfg["samples"]["max_new_tokens"]))


def model_prompts(cfg: Mapping[str, Any], data: BlockDataModule) -> list[str]:
    """The prompts as the model gets them."""
    return [data.as_prompt(text) for text in cfg["samples"]["prompts"]]


def write_samples(cfg: Mapping[str, Any], record: Record, when: str, texts: list[str]) -> None:
    file, prompts = record.folder.path / "samples.json", cfg["samples"]["prompts"]
    samples = _read_samples(file)
    if [sample["prompt"] for sample in samples] != list(prompts):
        samples = [{"prompt": text} for text in prompts]
    for sample, text in zip(samples, texts, strict=True):
        sample[when] = text
    write_text(file, json.dumps(samples, indent=2, ensure_ascii=False))


def _read_samples(file: Path) -> list[dict[str, str]]:
    """The samples that a file holds; none where it is damaged or not there."""
    if not file.is_file():
        return []
    try:
        samples = json.loads(file.read_text())
    except ValueError:
        samples = None
    if isinstance(samples, list) and all(isinstance(sample, dict) and "prompt" in sample for sample in samples):
        return samples
    say(f"{file} is damaged: it is written anew, without the earlier samples")
    return []


def save_weights(parameters: Mapping[str, Any], file: Path) -> None:
    """Write weights as safetensors with a checksum of their content, aside and renamed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_file(file)
    tensors = {name: parameter.detach().contiguous() for name, parameter in parameters.items()}
    try:
        save_file(tensors, partial, metadata={"sha256": tensors_sha256(tensors)})
        partial.replace(file)
    except SafetensorError as error:
        if "os error 28" in str(error):  # a full disk is told in words only
            raise OSError(errno.ENOSPC, str(error)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)
