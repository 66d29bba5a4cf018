"""The study of two models: how much of the target survives when it reads a text through the source."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from data_modules.data_module import BlockDataModule
from data_modules.pairing import Pairing
from data_modules.tensor_files import save_weights, tensors_sha256
from data_modules.tokens import token_bytes
from lightning_modules.hidden_states.frozen_states import in_precision
from lightning_modules.load import ADAPTER_STAGE, load_language_model, workspace
from lightning_modules.metrics import TokenNLL
from lightning_modules.options import activation_cache, adapter_arguments, model_loader
from lightning_modules.preflight import require_own_logits
from lightning_modules.processes import from_first
from lightning_modules.samples import continue_texts
from lightning_modules.two_models.adapter_training import AdapterTraining
from lightning_modules.two_models.bridge import Measured, measure
from lightning_modules.two_models.bridge_assembly import (
    build_bridges,
    configured_bridges,
    fit_bridges,
    load_source_model,
    paired_states,
    require_text,
    reversed_module,
)
from lightning_modules.two_models.cross_model import BRIDGES, CrossModelModule
from lightning_modules.two_models.paired_states import ShuffledStates, Site
from lightning_modules.weights import BRIDGE_WEIGHTS
from studies.communication import ask, record_communication
from studies.crossing import WatchCrossing, similarities
from studies.progress import say
from studies.report.display import show_crossing
from studies.run.code_version import run_code
from studies.run.fingerprint import model_account
from studies.run.recording import RunRecord
from studies.run.samples_file import write_samples
from studies.run.scores import SPLITS, Scores, cached_result, cached_scores, record_share, score, scoring
from studies.stage_training import train_stage
from studies.steps import operate_and_check, plot_curves, record_costs, recover, score_baseline

CONTROLS = ("mean", "random_orthogonal", "shuffled", "identity", "procrustes", "ridge")


def study(cfg: Mapping[str, Any], source: Any, tokenizer: Any, data: BlockDataModule, record: RunRecord) -> None:
    """Score both models and every control, fit and train the adapter, score it; everything goes into `record`."""
    require_text(data)
    questions = ask(cfg, tokenizer)
    source_tokenizer = model_loader(cfg, "source").tokenizer()
    pairing, samples = Pairing(tokenizer, source_tokenizer, cfg["dataset"]["start_token"]), cfg["samples"]
    # The other direction is only sampled: told early, where it cannot be.
    sampled = samples["max_new_tokens"] and samples["prompts"]
    back = Pairing(source_tokenizer, tokenizer, cfg["dataset"]["start_token"]) if sampled else None
    say("loading the models")
    module = load_language_model(cfg, source, tokenizer)
    require_own_logits(module.model)
    module.measure(data.token_bytes, data.position_groups())
    source_model = load_source_model(cfg, module)
    identity = model_account(module.original, tokenizer, cfg)
    own = score_baseline(cfg, module, data, record, identity)
    operate_and_check(cfg, module, data, record)
    stages, trained = recover(cfg, module, data, record, identity)
    changed = bool(module.surgery or module.placement or trained)
    if changed:
        say("scoring the target by itself")
        own = {"": score(cfg, module, data, "validation"), "test/": score(cfg, module, data, "test")}
    for prefix, scores in own.items():
        scores.record(record, f"target/{prefix}")

    accounts = (
        model_account(source_model, source_tokenizer, cfg),
        model_account(module.model, tokenizer, cfg, changed) if changed else identity,
    )
    states = paired_states(cfg, module, source_model, pairing, activation_cache(cfg), accounts)
    module.bridge(source_model, source_tokenizer, states)
    for split in ("train", *SPLITS.values()):
        states.reserve(data.blocks(split), scored=split != "train")
    say(f"reading {data.train_blocks.numel():,} tokens with both models")
    start = time.perf_counter()
    measured = from_first(lambda: measure(states, data.train_blocks))
    record.folder.record(**{"time/read_s": time.perf_counter() - start})
    record_source(cfg, module, data, record, accounts[0])
    floor = score_controls(cfg, module, data, record, own, measured)

    bridges = configured_bridges(cfg, states)
    start = time.perf_counter()
    fit_bridges(bridges, measured, cfg["adapter"]["shared"])
    record.folder.record(**{"time/fit_s": time.perf_counter() - start})
    module.span(bridges)
    adapted = train_adapter(cfg, module, data, record)
    bridged = module.model.get_submodule(BRIDGES).state_dict()
    save_weights({name: tensor.clone() for name, tensor in bridged.items()}, record.folder.path / BRIDGE_WEIGHTS)
    speed = record_final(cfg, module, data, record, own, floor)
    record_communication(cfg, module, record, questions)
    if back is not None:
        write_crossed_samples(cfg, module, record, data, back)
    show_crossing(record.metrics)
    record_costs(module, record, {**trained, **adapted}, speed)
    plot_curves(record, [*stages, *([ADAPTER_STAGE] if adapted else [])])


def record_source(
    cfg: Mapping[str, Any],
    module: CrossModelModule,
    data: BlockDataModule,
    record: RunRecord,
    account: Mapping[str, Any],
) -> None:
    """The source by itself on the same text, as `source/...`: its loss per token of its own, and its bits per byte.

    Args:
        account: what its numbers depend on.
    """
    sizes = token_bytes(module.source_tokenizer)
    for prefix, split in SPLITS.items():
        rows = [module.states.paired(block).tokens for block in data.blocks(split)]

        def compute(rows: Sequence[torch.Tensor] = rows) -> dict[str, float]:
            metric = TokenNLL(sizes)
            with torch.no_grad(), in_precision(cfg["trainer"]["precision"], module.source_model.device):
                for row in rows:
                    tokens = row[None].to(module.source_model.device)
                    metric.update(module.source_model(input_ids=tokens, use_cache=False).logits, tokens)
            return metric.compute()

        key = ["source", account, tensors_sha256({str(index): row for index, row in enumerate(rows)})]
        found = cached_result(cfg["cache_dir"], key, compute)
        record.folder.record(**{f"source/{prefix}{name}": value for name, value in found.items()})


def score_controls(
    cfg: Mapping[str, Any],
    module: CrossModelModule,
    data: BlockDataModule,
    record: RunRecord,
    own: Mapping[str, Scores],
    measured: Mapping[Site, Measured],
) -> dict[str, Scores]:
    """Score what every adapter is compared with, as `control/<name>/val/...`; known scores come from the cache.

    Args:
        own: of the target by itself, prefix of a metric's name -> scores.

    Returns:
        Those of the mean state, in the same way.
    """
    states, floor = module.states, {}
    pair = [states.source.keys, states.target.keys, data.sha256("train"), cfg["adapter"]["shared"]]
    pair += [run_code(cfg), states.pairing.start, states.pairing.source_start]
    widths = {model.config.get_text_config().hidden_size for model in (module.source_model, module.model)}
    for name in CONTROLS:
        if name == "identity" and len(widths) > 1:
            continue
        bridges = None
        for prefix, split in SPLITS.items():
            if split == "test" and name != "mean":
                continue
            if name == "shuffled" and not tells_apart(data.blocks(split)):
                say(
                    "the control shuffled is left out: it needs blocks of text that are not the same (dataset.val_size)"
                )
                continue

            def compute(split: str = split, name: str = name) -> Scores:
                nonlocal bridges
                if bridges is None:
                    bridges = build_bridges(cfg, states, "ridge" if name == "shuffled" else name, {})
                    fit_bridges(bridges, measured, cfg["adapter"]["shared"])
                module.span(bridges)
                module.states = ShuffledStates(states, data.blocks(split)) if name == "shuffled" else states
                say(f"scoring the control {name} on {split}")
                scores = score(cfg, module, data, split)
                scores.metrics.update(similarities(module, data, split))
                module.states = states
                return scores

            drawn = [cfg["seed"]] if name == "random_orthogonal" else []
            key = ["crossing", name, *pair, scoring(module, data, split), cfg["adapter"]["first_token"], *drawn]
            scores = cached_scores(cfg["cache_dir"], key, compute)
            if name == "mean":
                floor[prefix] = scores
            record_share(record, f"control/{name}/{prefix or 'val/'}", scores, floor[prefix], own[prefix])
    return floor


def tells_apart(blocks: torch.Tensor) -> bool:
    """Whether the next one of every block (blocks, length) is another text, so that its states are the wrong ones."""
    return not (blocks == blocks.roll(-1, 0)).all(1).any()


def train_adapter(
    cfg: Mapping[str, Any], module: CrossModelModule, data: BlockDataModule, record: RunRecord
) -> dict[str, torch.nn.Parameter]:
    """Train what there is to train of the adapter. Returns its parameters."""
    keys = dict(adapter_arguments(cfg)[1])
    if not keys or not keys["epochs"] or not any(True for _ in module.adapter.parameters()):
        return {}
    epochs, every = keys.pop("epochs"), keys.pop("metrics_every")
    steps = math.ceil(len(data.train_blocks) / keys["batch_size"])
    shared = replace(workspace(module, cfg), batch_size=keys["batch_size"])
    stage = AdapterTraining(workspace=shared, module=module, steps=epochs * steps, **keys)
    # An epoch ends with a score of the translated states; early stopping goes by it.
    by_epoch = {**cfg, "trainer": {**cfg["trainer"], "val_check_interval": steps, "max_epochs": epochs}}
    watch = WatchCrossing(cfg, data, record, every)
    return train_stage(by_epoch, module, data, record, ADAPTER_STAGE, stage, [watch])


def record_final(
    cfg: Mapping[str, Any],
    module: CrossModelModule,
    data: BlockDataModule,
    record: RunRecord,
    own: Mapping[str, Scores],
    floor: Mapping[str, Scores],
) -> Scores:
    """Score the adapter on validation (what is returned) and test, with the share of the gap that it closes."""
    found = {}
    for prefix, split in SPLITS.items():
        say(f"final score on {split}")
        scores = score(cfg, module, data, split)
        scores.metrics.update(similarities(module, data, split))
        record_share(record, prefix or "val/", scores, floor[prefix], own[prefix])
        found[prefix] = scores
    return found[""]


def write_crossed_samples(
    cfg: Mapping[str, Any],
    module: CrossModelModule,
    record: RunRecord,
    data: BlockDataModule,
    back: Pairing,
) -> None:
    """Continue the prompts under four conditions: each model alone, and each after a prompt that the other has read."""
    say("continuing the prompts with each model, and across")
    states, samples = module.states, cfg["samples"]
    arguments = (samples["prompts"], samples["max_new_tokens"])
    conditions = {
        "target": lambda: continue_texts(module.model, module.tokenizer, *arguments, states.pairing.start),
        "source": lambda: continue_texts(
            module.source_model, module.source_tokenizer, *arguments, states.pairing.source_start
        ),
        "target to source, by ridge": lambda: reversed_module(cfg, module, back, data.train_blocks).continue_texts(
            *arguments
        ),
    }
    content = [states.source.keys, states.target.keys, states.first_token, data.sha256("train"), run_code(cfg)]
    content += [states.pairing.start, states.pairing.source_start]
    for condition, texts in conditions.items():  # none of which depends on the adapter
        found = cached_result(
            cfg["cache_dir"], ["texts", condition, content, arguments], lambda texts=texts: {"texts": texts()}
        )
        write_samples(cfg, record, condition, found["texts"])
    write_samples(cfg, record, "source to target", from_first(lambda: module.continue_texts(*arguments)))
