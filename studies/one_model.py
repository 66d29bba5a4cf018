"""The study of one language model: baseline, surgery and placement, training stage by stage, final score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_modules.data_module import BlockDataModule
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.load import load_language_model
from lightning_modules.preflight import require_own_logits
from studies.progress import say
from studies.run.fingerprint import model_account
from studies.run.recording import RunRecord
from studies.run.samples_file import continue_prompts, sample_baseline, write_samples
from studies.run.scores import Scores, score
from studies.steps import operate_and_check, plot_curves, record_costs, recover, score_baseline


def study(cfg: Mapping[str, Any], source: Any, tokenizer: Any, data: BlockDataModule, record: RunRecord) -> None:
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


def _final(
    cfg: Mapping[str, Any],
    module: CausalLMModule,
    data: BlockDataModule,
    record: RunRecord,
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


def _unchanged(record: RunRecord, baselines: Mapping[str, Scores]) -> Scores:
    """Where nothing was trained, the final scores are those of the untouched model."""
    for prefix, scores in baselines.items():
        scores.record(record, prefix or "val/")
    return baselines[""]
