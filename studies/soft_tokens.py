"""The study of soft tokens: what is lost when a context becomes a few of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from data_modules.tensor_files import save_weights
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.load import workspace
from lightning_modules.soft_tokens.compression import (
    CompressionModule,
    CompressionTraining,
    ContinuationModule,
    require_continuation,
)
from lightning_modules.soft_tokens.encoder_assembly import build_compression
from lightning_modules.weights import BRIDGE_WEIGHTS
from studies.progress import say
from studies.report.soft_tokens_table import show_compression
from studies.run.fingerprint import model_account
from studies.run.scores import SPLIT_OF, Scores, cached_scores, record_share, scoring
from studies.stage_training import train_stage
from studies.steps import operate_and_check, plot_curves, record_costs, recover
from studies.study import Study

STAGE = "compressor"  # named after the group, as `load_module` expects it of what lies between two models
UNTRAINED_FORMS = ("text", "truncated", "nothing")  # of the context, for which nothing is learned


def study_soft_tokens(study: Study) -> None:
    """Score what the target makes of continuations after a context in every form."""
    cfg, record = study.cfg, study.record
    require_continuation(cfg.compressor.context, study.data)
    module = ContinuationModule(study.load_model(), cfg.compressor.context)
    module.measure(study.data.token_bytes, study.data.position_groups(study.data.settings.block_size - module.opening))
    identity = model_account(module.original, study.tokenizer, cfg)
    for prefix, scores in score_form(study, module, "text", identity).items():
        scores.record(record, f"baseline/{prefix}")
        record.folder.result["baseline"] |= {f"{prefix}{name}": value for name, value in scores.metrics.items()}
    operate_and_check(study, module)
    stages, trained = recover(study, module, identity)
    if trained or module.surgery or module.placement:
        identity = model_account(module.model, study.tokenizer, cfg, changed=True)
    forms = {form: score_form(study, module, form, identity) for form in UNTRAINED_FORMS}
    soft = build_compression(cfg, module, cfg.activation_cache(), partial(model_account, cfg=cfg))
    contexts = torch.cat([study.data.blocks(split)[:, : soft.opening] for split in ("train", *SPLIT_OF.values())])
    soft.reserve(contexts)
    encoder = train_encoder(study, soft)
    save_weights(soft.between.state_dict(), record.folder.path / BRIDGE_WEIGHTS)
    speed = record_forms(study, soft, forms)
    record_costs(study, soft, {**trained, **encoder}, speed)
    plot_curves(study, [*stages, *([STAGE] if encoder else [])])
    show_compression(record.metrics)


def score_form(study: Study, target: CausalLMModule, form: str, identity: Mapping[str, Any]) -> dict[str, Scores]:
    """Prefix of a metric's name -> scores, after the context in one of `UNTRAINED_FORMS`."""
    settings, scores = study.cfg.compressor, {}
    shown = {"text": None, "truncated": settings.tokens, "nothing": 0}[form]
    module = ContinuationModule(target, settings.context, shown)
    for prefix, split in SPLIT_OF.items():
        key = ["continuation", form, identity, settings.context, shown, scoring(module, study.data, split)]
        say(f"scoring continuations on {split} after {form}")
        scores[prefix] = cached_scores(study.cfg.cache_dir, key, partial(study.score, module, split))
    return scores


def train_encoder(study: Study, module: CompressionModule) -> dict[str, torch.nn.Parameter]:
    """Train the encoder. Returns its parameters."""
    settings = study.cfg.compressor
    blocks = study.data.train_blocks[:8].to(module.model.device)
    embeddings = module.model.get_input_embeddings()(blocks)
    module.between.measure(*module.read(blocks[:, : module.opening]), embeddings)
    if not settings.steps:
        return {}
    stage = CompressionTraining(
        workspace=workspace(module, study.cfg),
        module=module,
        steps=settings.steps,
        lr=settings.lr,
        batch_size=settings.batch_size,
    )
    return train_stage(study, module, STAGE, stage)


def record_forms(study: Study, module: CompressionModule, forms: Mapping[str, Mapping[str, Scores]]) -> Scores:
    """Record every form of the context, and the soft tokens (whose scores on validation are returned).

    `gap_closed` is the share of what the text is worth (the loss after nothing, less that after the text) that is kept;
    `compression/ratio` is counted: tokens of the context, as the target reads it, over soft tokens.
    """
    final, record = {}, study.record
    for prefix, split in SPLIT_OF.items():
        say(f"final score on {split}")
        final[prefix] = study.score(module, split)
        named = {f"control/{form}/": forms[form][prefix] for form in UNTRAINED_FORMS} | {"": final[prefix]}
        for name, scores in named.items():
            floor, ceiling = (forms[form][prefix] for form in ("nothing", "text"))
            record_share(record, f"{name}{prefix or 'val/'}", scores, floor, ceiling)
    contexts = study.data.validation_blocks[:, : module.opening]
    soft = module.between(*module.read(contexts[:1])).shape[1]
    size = study.data.token_bytes[contexts].sum(1).double().mean().item()
    record.folder.record(**{"compression/ratio": module.context / soft, "compression/bytes_per_token": size / soft})
    return final[""]
