"""The study of two models: how much of the target survives when it reads a text through the source."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from data_modules.pairing import Pairing
from data_modules.tensor_files import save_weights, tensors_sha256
from data_modules.tokens import token_bytes
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.dtypes import in_precision
from lightning_modules.load import workspace
from lightning_modules.metrics import TokenNLL
from lightning_modules.processes import from_first
from lightning_modules.samples import continue_texts
from lightning_modules.two_models.adapter_training import AdapterTraining
from lightning_modules.two_models.bridge import Bridge, Measured, measure
from lightning_modules.two_models.bridge_assembly import (
    build_bridges,
    configured_bridges,
    fit_bridges,
    load_source_model,
    paired_states,
    reversed_module,
)
from lightning_modules.two_models.cross_model import CrossModelModule, require_text
from lightning_modules.two_models.paired_states import PairedStates, ShuffledStates
from lightning_modules.two_models.sites import Site
from lightning_modules.weights import BRIDGE_WEIGHTS
from studies.communication import ask, record_communication
from studies.crossing import WatchCrossing, similarities
from studies.progress import say
from studies.prompt_samples import asks_for_samples, write_samples
from studies.report.two_models_table import show_crossing
from studies.run.code_version import run_code
from studies.run.fingerprint import model_account
from studies.run.scores import SPLIT_OF, Scores, cached_result, cached_scores, record_share, scoring
from studies.stage_training import train_stage
from studies.steps import operate_and_check, plot_curves, record_costs, recover, score_baseline
from studies.study import Study

STAGE = "adapter"  # named after the group, as `load_module` expects it of what lies between two models
ADAPTER_CONTROLS = ("mean", "random_orthogonal", "shuffled", "identity", "procrustes", "ridge")

# (states, bridges) -> the module that reads through them
Crossing = Callable[[PairedStates | ShuffledStates, Mapping[Site, Bridge]], CrossModelModule]


def study_two_models(study: Study) -> None:
    """Score both models and every control, fit and train the adapter, score it."""
    cfg, data, record = study.cfg, study.data, study.record
    require_text(data)
    questions = ask(study)
    source_tokenizer = cfg.source_loader().tokenizer()
    pairing = Pairing(study.tokenizer, source_tokenizer, cfg.dataset.start_token)
    # The other direction is only sampled: told early, where it cannot be.
    back = Pairing(source_tokenizer, study.tokenizer, cfg.dataset.start_token) if asks_for_samples(study) else None
    target = study.load_model()
    target.measure(data.token_bytes, data.position_groups())
    source_model = load_source_model(cfg, target)
    identity = model_account(target.original, study.tokenizer, cfg)
    own = score_baseline(study, target, identity)
    operate_and_check(study, target)
    stages, trained = recover(study, target, identity)
    changed = bool(target.surgery or target.placement or trained)
    if changed:
        say("scoring the target by itself")
        own = {prefix: study.score(target, split) for prefix, split in SPLIT_OF.items()}
    for prefix, scores in own.items():
        scores.record(record, f"target/{prefix}")

    accounts = (
        model_account(source_model, source_tokenizer, cfg),
        model_account(target.model, study.tokenizer, cfg, changed) if changed else identity,
    )
    states = paired_states(cfg, target.model, source_model, pairing, cfg.activation_cache(), accounts)
    crossing = partial(CrossModelModule, target, source_model, source_tokenizer)
    for split in ("train", *SPLIT_OF.values()):
        states.reserve(data.blocks(split), scored=split != "train")
    say(f"reading {data.train_blocks.numel():,} tokens with both models")
    start = time.perf_counter()
    measured = from_first(lambda: measure(states, data.train_blocks))
    record.folder.record(**{"time/read_s": time.perf_counter() - start})
    record_source(study, states, source_tokenizer, accounts[0])
    floor = score_controls(study, target, crossing, states, own, measured)

    bridges = configured_bridges(cfg, states)
    start = time.perf_counter()
    fit_bridges(bridges, measured, cfg.adapter.shared)
    record.folder.record(**{"time/fit_s": time.perf_counter() - start})
    module = crossing(states, bridges)
    adapted = train_adapter(study, module)
    weights = {name: tensor.clone() for name, tensor in module.between.state_dict().items()}
    save_weights(weights, record.folder.path / BRIDGE_WEIGHTS)
    speed = record_final(study, module, own, floor)
    record_communication(study, module, questions)
    if back is not None:
        write_crossed_samples(study, module, back)
    show_crossing(record.metrics)
    record_costs(study, module, {**trained, **adapted}, speed)
    plot_curves(study, [*stages, *([STAGE] if adapted else [])])


def record_source(study: Study, states: PairedStates, tokenizer: Any, account: Mapping[str, Any]) -> None:
    """The source by itself on the same text, as `source/...`: its loss per token of its own, and its bits per byte.

    Args:
        tokenizer: of the source.
        account: what its numbers depend on.
    """
    sizes, model = token_bytes(tokenizer), states.source.model
    for prefix, split in SPLIT_OF.items():
        rows = [states.paired(block).tokens for block in study.data.blocks(split)]

        def compute(rows: Sequence[torch.Tensor] = rows) -> dict[str, float]:
            metric = TokenNLL(sizes)
            with torch.no_grad(), in_precision(study.cfg.trainer.precision, model.device):
                for row in rows:
                    tokens = row[None].to(model.device)
                    metric.update(model(input_ids=tokens, use_cache=False).logits, tokens)
            return metric.compute()

        key = ["source", account, tensors_sha256({str(index): row for index, row in enumerate(rows)})]
        scores = cached_result(study.cfg.cache_dir, key, compute)
        study.record.folder.record(**{f"source/{prefix}{name}": value for name, value in scores.items()})


def score_controls(
    study: Study,
    target: CausalLMModule,
    crossing: Crossing,
    states: PairedStates,
    own: Mapping[str, Scores],
    measured: Mapping[Site, Measured],
) -> dict[str, Scores]:
    """Score what every adapter is compared with, as `control/<name>/val/...`; known scores come from the cache.

    Args:
        own: of the target by itself, prefix of a metric's name -> scores.

    Returns:
        The scores of the control `mean`, by the same prefixes as `own`.
    """
    cfg, data, floor = study.cfg, study.data, {}
    pair = [states.source.keys, states.target.keys, data.sha256("train"), cfg.adapter.shared]
    pair += [run_code(cfg), states.pairing.start, states.pairing.source_start]
    widths = {model.config.get_text_config().hidden_size for model in (states.source.model, states.target.model)}
    for name in ADAPTER_CONTROLS:
        if name == "identity" and len(widths) > 1:
            continue
        bridges: dict[Site, Bridge] = {}
        for prefix, split in SPLIT_OF.items():
            if split == "test" and name != "mean":
                continue
            if name == "shuffled" and not tells_apart(data.blocks(split)):
                say(
                    "the control shuffled is left out: it needs blocks of text that are not the same (dataset.val_size)"
                )
                continue

            def compute(split: str = split, name: str = name, bridges: dict[Site, Bridge] = bridges) -> Scores:
                if not bridges:
                    bridges |= build_bridges(cfg, states, "ridge" if name == "shuffled" else name, {})
                    fit_bridges(bridges, measured, cfg.adapter.shared)
                read = ShuffledStates(states, data.blocks(split)) if name == "shuffled" else states
                module = crossing(read, bridges)
                say(f"scoring the control {name} on {split}")
                scores = study.score(module, split)
                scores.metrics.update(similarities(module, data, split))
                return scores

            drawn = [cfg.seed] if name == "random_orthogonal" else []
            key = ["crossing", name, *pair, scoring(target, data, split), cfg.adapter.first_token, *drawn]
            scores = cached_scores(cfg.cache_dir, key, compute)
            if name == "mean":
                floor[prefix] = scores
            record_share(study.record, f"control/{name}/{prefix or 'val/'}", scores, floor[prefix], own[prefix])
    return floor


def tells_apart(blocks: torch.Tensor) -> bool:
    """Whether the next one of every block (blocks, length) is another text, so that its states are the wrong ones."""
    return not (blocks == blocks.roll(-1, 0)).all(1).any()


def train_adapter(study: Study, module: CrossModelModule) -> dict[str, torch.nn.Parameter]:
    """Train what there is to train of the adapter. Returns its parameters."""
    settings = study.cfg.adapter.training
    if settings is None or not settings.epochs or not any(True for _ in module.adapter.parameters()):
        return {}
    steps = math.ceil(len(study.data.train_blocks) / settings.batch_size)
    keys = {key: value for key, value in vars(settings).items() if key not in ("epochs", "metrics_every")}
    shared = replace(workspace(module, study.cfg), batch_size=settings.batch_size)
    stage = AdapterTraining(workspace=shared, module=module, steps=settings.epochs * steps, **keys)
    # An epoch ends with a score of the translated states; early stopping goes by it.
    by_epoch = replace(study.cfg.trainer, val_check_interval=steps, max_epochs=settings.epochs)
    watch = WatchCrossing(study, settings.metrics_every)
    return train_stage(study, module, STAGE, stage, [watch], by_epoch)


def record_final(
    study: Study, module: CrossModelModule, own: Mapping[str, Scores], floor: Mapping[str, Scores]
) -> Scores:
    """Score the adapter on validation (what is returned) and test, with the share of the gap that it closes."""
    final = {}
    for prefix, split in SPLIT_OF.items():
        say(f"final score on {split}")
        final[prefix] = study.score(module, split)
        final[prefix].metrics.update(similarities(module, study.data, split))
        record_share(study.record, prefix or "val/", final[prefix], floor[prefix], own[prefix])
    return final[""]


def write_crossed_samples(study: Study, module: CrossModelModule, back: Pairing) -> None:
    """Continue the prompts under four conditions: each model alone, and each after a prompt that the other has read."""
    say("continuing the prompts with each model, and across")
    cfg, states, blocks = study.cfg, module.states, study.data.train_blocks
    prompts = (cfg.samples.prompts, cfg.samples.max_new_tokens)
    conditions = {
        "target": lambda: continue_texts(module.model, module.tokenizer, *prompts, states.pairing.start),
        "source": lambda: continue_texts(
            module.source_model, module.source_tokenizer, *prompts, states.pairing.source_start
        ),
        "target to source, by ridge": lambda: reversed_module(cfg, module, back, blocks).continue_texts(*prompts),
    }
    content = [states.source.keys, states.target.keys, states.first_token, study.data.sha256("train"), run_code(cfg)]
    content += [states.pairing.start, states.pairing.source_start]
    for condition, texts in conditions.items():  # none of which depends on the adapter
        key = ["texts", condition, content, prompts]
        result = cached_result(cfg.cache_dir, key, lambda texts=texts: {"texts": texts()})
        write_samples(study, condition, result["texts"])
    write_samples(study, "source to target", from_first(lambda: module.continue_texts(*prompts)))
