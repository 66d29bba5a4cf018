"""What is measured of translated hidden states, and watched while an adapter trains."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch
from lightning import Callback, Trainer

from data_modules.data_module import BlockDataModule
from lightning_modules.processes import from_first
from lightning_modules.two_models.cross_model import CrossModelModule
from lightning_modules.two_models.similarity import similarity
from lightning_modules.two_models.sites import Site
from studies.prompt_samples import asks_for_samples, write_samples
from studies.study import Study


def similarities(module: CrossModelModule, data: BlockDataModule, split: str = "validation") -> dict[str, float]:
    """Likeness of the translated states to the target's own, on held-out text; the mean over sites, and each."""
    return from_first(lambda: _similarities(module, data, split))


def _similarities(module: CrossModelModule, data: BlockDataModule, split: str) -> dict[str, float]:
    rows: dict[Site, list[tuple[torch.Tensor, ...]]] = {site: [] for site in module.states.sites}
    with torch.no_grad():
        for batch in data.loader(split):
            read = module.read(batch["input_ids"].to(module.model.device))
            for site, states in read.items():
                paired = states.paired
                documents = batch["documents"].to(paired.device)
                parts = (module.translate(site, states)[paired], states.target[paired], documents[paired])
                rows[site].append(tuple(part.cpu() for part in parts))
    by_site = {site: similarity(*map(torch.cat, zip(*parts, strict=True))) for site, parts in rows.items()}
    shared = set.intersection(*map(set, by_site.values()))
    values = {name: fmean(measures[name] for measures in by_site.values()) for name in sorted(shared)}
    if len(by_site) > 1:
        for site, measures in by_site.items():
            values |= {f"layer_{site.target}/{name}": value for name, value in measures.items()}
    return values


class WatchCrossing(Callback):
    """Similarity every so many steps and after every epoch, when the prompts are also continued."""

    def __init__(self, study: Study, every: int):
        self.study, self.every = study, every

    def on_train_batch_end(self, trainer: Trainer, module: CrossModelModule, *args: Any) -> None:
        if trainer.global_step % self.every == 0:
            self._log(trainer, module)

    def on_validation_end(self, trainer: Trainer, module: CrossModelModule) -> None:
        if trainer.global_step % self.every:
            self._log(trainer, module)
        if asks_for_samples(self.study):
            epoch, samples = trainer.global_step // trainer.val_check_batch, self.study.cfg.samples
            texts = from_first(lambda: module.continue_texts(samples.prompts, samples.max_new_tokens))
            write_samples(self.study, f"source to target, epoch {epoch}", texts)

    def _log(self, trainer: Trainer, module: CrossModelModule) -> None:
        values = {f"val/{name}": value for name, value in similarities(module, self.study.data).items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step - 1)  # counted as Lightning does for its own
