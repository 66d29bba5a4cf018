"""What is measured of translated hidden states, and watched while an adapter trains."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import torch
from lightning import Callback, Trainer

from data_modules.data_module import BlockDataModule
from lightning_modules.processes import from_first
from lightning_modules.two_models.cross_model import CrossModelModule
from lightning_modules.two_models.paired_states import Site
from lightning_modules.two_models.similarity import similarity
from studies.run.recording import RunRecord
from studies.run.samples_file import write_samples


def similarities(module: CrossModelModule, data: BlockDataModule, split: str = "validation") -> dict[str, float]:
    """Likeness of the translated states to the target's own, on held-out text; the mean over sites, and each."""
    return from_first(lambda: _similarities(module, data, split))


def _similarities(module: CrossModelModule, data: BlockDataModule, split: str) -> dict[str, float]:
    rows: dict[Site, list[tuple[torch.Tensor, ...]]] = {each: [] for each in module.states.sites}
    with torch.no_grad():
        for batch in data.loader(split):
            read = module.read(batch["input_ids"].to(module.model.device))
            for site, states in read.items():
                there = states.paired
                translated = module.translate(site, states)
                parts = (translated[there], states.target[there], batch["documents"].to(there.device)[there])
                rows[site].append(tuple(part.cpu() for part in parts))
    found = {site: similarity(*map(torch.cat, zip(*parts, strict=True))) for site, parts in rows.items()}
    shared = set.intersection(*map(set, found.values()))
    values = {name: fmean(each[name] for each in found.values()) for name in sorted(shared)}
    if len(found) > 1:
        values |= {f"layer_{site.target}/{name}": each[name] for site, each in found.items() for name in each}
    return values


class WatchCrossing(Callback):
    """Similarity every so many steps and after every epoch, when the prompts are also continued."""

    def __init__(self, cfg: Mapping[str, Any], data: BlockDataModule, record: RunRecord, every: int):
        self.cfg, self.data, self.record, self.every = cfg, data, record, every

    def on_train_batch_end(self, trainer: Trainer, module: CrossModelModule, *args: Any) -> None:
        if trainer.global_step % self.every == 0:
            self._log(trainer, module)

    def on_validation_end(self, trainer: Trainer, module: CrossModelModule) -> None:
        if trainer.global_step % self.every:
            self._log(trainer, module)
        if self.cfg["samples"]["max_new_tokens"] and self.cfg["samples"]["prompts"]:
            epoch = trainer.global_step // trainer.val_check_batch
            samples = self.cfg["samples"]
            texts = from_first(lambda: module.continue_texts(samples["prompts"], samples["max_new_tokens"]))
            write_samples(self.cfg, self.record, f"source to target, epoch {epoch}", texts)

    def _log(self, trainer: Trainer, module: CrossModelModule) -> None:
        values = {f"val/{name}": value for name, value in similarities(module, self.data).items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step - 1)  # counted as Lightning does for its own
