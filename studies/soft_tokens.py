"""The study of soft tokens: what is lost when a context becomes a few of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from data_modules.data_module import BlockDataModule
from data_modules.tensor_files import save_weights
from lightning_modules.load import COMPRESSOR_STAGE, load_language_model, workspace
from lightning_modules.options import activation_cache
from lightning_modules.preflight import require_own_logits
from lightning_modules.soft_tokens.compression import COMPRESSOR, CompressionModule, CompressionTraining
from lightning_modules.soft_tokens.encoder_assembly import compress_models
from lightning_modules.two_models.bridge_assembly import require_continuation, require_text
from lightning_modules.weights import BRIDGE_WEIGHTS
from studies.progress import say
from studies.report.display import show_compression
from studies.run.fingerprint import model_account
from studies.run.recording import RunRecord
from studies.run.scores import SPLITS, Scores, cached_scores, record_share, score, scoring
from studies.stage_training import train_stage
from studies.steps import operate_and_check, plot_curves, record_costs, recover

CONTROLS = ("text", "truncated", "nothing")


def study(cfg: Mapping[str, Any], source: Any, tokenizer: Any, data: BlockDataModule, record: RunRecord) -> None:
    """Score what the target makes of continuations after a context in every form; everything goes into `record`."""
    require_text(data)
    require_continuation(cfg["compressor"]["context"], data)
    say("loading the models")
    module = load_language_model(cfg, source, tokenizer)
    require_own_logits(module.model)
    keys = cfg["compressor"]
    module.context, module.tokens = keys["context"], keys["tokens"]
    module.measure(data.token_bytes, data.position_groups(data.settings.block_size - module.opening))
    identity = model_account(module.original, tokenizer, cfg)
    for prefix, scores in score_forms(cfg, module, data, identity, ("text",))["text"].items():
        scores.record(record, f"baseline/{prefix}")
        record.folder.result["baseline"] |= {f"{prefix}{name}": value for name, value in scores.metrics.items()}
    operate_and_check(cfg, module, data, record)
    stages, trained = recover(cfg, module, data, record, identity)
    if trained or module.surgery or module.placement:
        identity = model_account(module.model, tokenizer, cfg, changed=True)
    forms = score_forms(cfg, module, data, identity, CONTROLS)
    compress_models(cfg, module, activation_cache(cfg), partial(model_account, cfg=cfg))
    contexts = torch.cat([data.blocks(split)[:, : module.opening] for split in ("train", *SPLITS.values())])
    module.states.reserve([module.pairing(row).tokens for row in contexts], len(contexts))
    encoder = train_encoder(cfg, module, data, record)
    save_weights(module.model.get_submodule(COMPRESSOR).state_dict(), record.folder.path / BRIDGE_WEIGHTS)
    speed = record_forms(cfg, module, data, record, forms)
    record_costs(module, record, {**trained, **encoder}, speed)
    plot_curves(record, [*stages, *([COMPRESSOR_STAGE] if encoder else [])])
    show_compression(record.metrics)


def score_forms(
    cfg: Mapping[str, Any],
    module: CompressionModule,
    data: BlockDataModule,
    identity: Mapping[str, Any],
    forms: tuple[str, ...],
) -> dict[str, dict[str, Scores]]:
    """Form of the context -> prefix of a metric's name -> scores, of forms that nothing is learned for."""
    found = {}
    for form in forms:
        module.form, found[form] = form, {}
        for prefix, split in SPLITS.items():
            shown = module.tokens if form == "truncated" else None
            key = ["continuation", form, identity, module.context, shown, scoring(module, data, split)]
            say(f"scoring continuations on {split} after {form}")
            compute = lambda split=split: score(cfg, module, data, split)  # noqa: E731
            found[form][prefix] = cached_scores(cfg["cache_dir"], key, compute)
    return found


def train_encoder(
    cfg: Mapping[str, Any], module: CompressionModule, data: BlockDataModule, record: RunRecord
) -> dict[str, torch.nn.Parameter]:
    """Train the encoder. Returns its parameters."""
    keys, module.form = cfg["compressor"], "soft"
    some = data.train_blocks[:8].to(module.model.device)
    embeddings = module.model.get_input_embeddings()(some)
    module.model.get_submodule(COMPRESSOR).measure(*module.read(some[:, : module.opening]), embeddings)
    if not keys["steps"]:
        return {}
    arguments = {key: keys[key] for key in ("steps", "lr", "batch_size")}
    stage = CompressionTraining(workspace=workspace(module, cfg), module=module, **arguments)
    return train_stage(cfg, module, data, record, COMPRESSOR_STAGE, stage)


def record_forms(
    cfg: Mapping[str, Any],
    module: CompressionModule,
    data: BlockDataModule,
    record: RunRecord,
    forms: Mapping[str, Mapping[str, Scores]],
) -> Scores:
    """Record every form of the context, and the soft tokens (whose scores on validation are returned).

    `gap_closed` is the share of what the text is worth (the loss after nothing, less that after the text) that is kept;
    `compression/ratio` is counted: tokens of the context, as the target reads it, over soft tokens.
    """
    found = {}
    for prefix, split in SPLITS.items():
        say(f"final score on {split}")
        found[prefix] = score(cfg, module, data, split)
        named = {f"control/{form}/": forms[form][prefix] for form in CONTROLS} | {"": found[prefix]}
        for name, scores in named.items():
            metric_prefix, (floor, ceiling) = (
                f"{name}{prefix or 'val/'}",
                (forms[form][prefix] for form in ("nothing", "text")),
            )
            record_share(record, metric_prefix, scores, floor, ceiling)
    contexts = data.validation_blocks[:, : module.opening]
    soft = module.model.get_submodule(COMPRESSOR)(*module.read(contexts[:1])).shape[1]
    size = data.token_bytes[contexts].sum(1).double().mean().item()
    ratio = {"compression/ratio": module.context / soft, "compression/bytes_per_token": size / soft}
    record.folder.record(**ratio)
    return found[""]
