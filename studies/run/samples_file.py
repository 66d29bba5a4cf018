"""Continuations of the prompts of a config, in `samples.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_modules.data_module import BlockDataModule
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.processes import from_first
from studies.progress import say
from studies.run.files import write_text
from studies.run.recording import RunRecord
from studies.run.scores import cached_result


def sample_baseline(
    cfg: Mapping[str, Any],
    module: CausalLMModule,
    data: BlockDataModule,
    record: RunRecord,
    identity: Mapping[str, str],
) -> None:
    """What the untouched model makes of the prompts; from the cache where it is known."""
    samples = cfg["samples"]
    if samples["max_new_tokens"] and samples["prompts"]:
        say("continuing the prompts with the untouched model")
        key = ["samples", identity, samples, model_prompts(cfg, data), module.start]
        texts = cached_result(cfg["cache_dir"], key, lambda: {"texts": continue_prompts(cfg, module, data)})
        write_samples(cfg, record, "before", texts["texts"])


def continue_prompts(cfg: Mapping[str, Any], module: CausalLMModule, data: BlockDataModule) -> list[str]:
    return from_first(lambda: module.continue_texts(model_prompts(cfg, data), cfg["samples"]["max_new_tokens"]))


def model_prompts(cfg: Mapping[str, Any], data: BlockDataModule) -> list[str]:
    """The prompts as the model gets them."""
    return [data.as_prompt(text) for text in cfg["samples"]["prompts"]]


def write_samples(cfg: Mapping[str, Any], record: RunRecord, when: str, texts: list[str]) -> None:
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
