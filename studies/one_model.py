"""The study of one language model: baseline, surgery and placement, training stage by stage, final score."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_modules.causal_lm import CausalLMModule
from studies.progress import say
from studies.prompt_samples import SAMPLES, continue_prompts, sample_baseline, write_samples
from studies.run.fingerprint import model_account
from studies.run.scores import Scores
from studies.steps import operate_and_check, plot_curves, record_costs, recover, score_baseline
from studies.study import Study


def study_one_model(study: Study) -> None:
    """Score the model, operate, train stage by stage, score again."""
    module = study.load_model()
    module.measure(study.data.token_bytes, study.data.position_groups(), study.data.unknown)
    identity = model_account(module.original, study.tokenizer, study.cfg)
    baselines = score_baseline(study, module, identity)
    sample_baseline(study, module, identity)
    operate_and_check(study, module)
    stages, trained = recover(study, module, identity)
    if trained:
        speed = _final(study, module, stages[-1])
    else:
        say("nothing to train: nothing is replaced or placed and model.freeze is true, or no steps are asked for")
        speed = _unchanged(study, baselines)
    record_costs(study, module, trained, speed)
    plot_curves(study, stages)


def _final(study: Study, module: CausalLMModule, last_stage: str) -> Scores:
    """Score on validation (what is returned) and test; samples."""
    say("final score on validation")
    scores, record = study.score(module, "validation"), study.record
    scores.record(record, f"{last_stage}/")
    scores.record(record, "val/")
    entropy = study.data.entropy()
    if entropy:
        record.folder.record(**{"val/over_entropy": scores.metrics["loss"] / entropy})
    say("final score on test")
    study.score(module, "test").record(record, "test/")
    if (record.folder.path / SAMPLES).is_file():
        say("continuing the prompts with the trained model")
        write_samples(study, "after", continue_prompts(study, module))
    return scores


def _unchanged(study: Study, baselines: Mapping[str, Scores]) -> Scores:
    """Where nothing was trained, the final scores are those of the untouched model."""
    for prefix, scores in baselines.items():
        scores.record(study.record, prefix or "val/")
    return baselines[""]
