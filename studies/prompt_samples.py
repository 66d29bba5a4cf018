"""Continuations of the prompts of a config, in `samples.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.processes import from_first
from studies.progress import say
from studies.run.files import write_text
from studies.run.scores import cached_result
from studies.study import Study

SAMPLES = "samples.json"


def asks_for_samples(study: Study) -> bool:
    """Whether there are prompts to continue."""
    return bool(study.cfg.samples.max_new_tokens and study.cfg.samples.prompts)


def sample_baseline(study: Study, module: CausalLMModule, identity: Mapping[str, Any]) -> None:
    """What the untouched model makes of the prompts; from the cache where it is known."""
    if asks_for_samples(study):
        say("continuing the prompts with the untouched model")
        key = ["samples", identity, asdict(study.cfg.samples), model_prompts(study), module.start]
        result = cached_result(study.cfg.cache_dir, key, lambda: {"texts": continue_prompts(study, module)})
        write_samples(study, "before", result["texts"])


def continue_prompts(study: Study, module: CausalLMModule) -> list[str]:
    """What a model makes of the prompts."""
    return from_first(lambda: module.continue_texts(model_prompts(study), study.cfg.samples.max_new_tokens))


def model_prompts(study: Study) -> list[str]:
    """The prompts as the model gets them."""
    return [study.data.as_prompt(text) for text in study.cfg.samples.prompts]


def write_samples(study: Study, when: str, texts: Sequence[str]) -> None:
    """Put the continuations of the prompts into the file, under the name of a state of the model."""
    file, prompts = study.record.folder.path / SAMPLES, study.cfg.samples.prompts
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
