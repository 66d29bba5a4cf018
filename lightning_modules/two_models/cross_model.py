"""The LightningModule of studies on two models: the target, part of whose states are translated from the source's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.hidden_states.injection import injected
from lightning_modules.inputs import scored_labels
from lightning_modules.metrics import TokenNLL
from lightning_modules.nll import IGNORED, token_divergence
from lightning_modules.soft_tokens.compression import CompressionModule
from lightning_modules.two_models.bridge import Bridge
from lightning_modules.two_models.continuation import continue_across
from lightning_modules.two_models.paired_states import PairedStates, Site, States
from registries.registry import UserError

BRIDGES = "bridges"  # the submodule of the target that holds what is translated at which block


class CrossModelModule(CausalLMModule):
    """A causal language model that may read a text through another one.

    It is scored as every model is; while `crossing`, its hidden states entering a block are those that the source's
    were translated to. With several sites, each is scored by itself and the loss is the mean.

    Attributes:
        source_model, source_tokenizer: of the model that is read.
        states: of both models at any text.
        crossing: whether scoring translates; what is scored is the target by itself otherwise.
    """

    source_model: nn.Module
    source_tokenizer: Any
    states: PairedStates
    crossing = False

    def bridge(self, source_model: nn.Module, source_tokenizer: Any, states: PairedStates) -> None:
        """Set what is read; `span` says how it is translated."""
        self.source_model, self.source_tokenizer, self.states = source_model, source_tokenizer, states
        self.site_scores = nn.ModuleDict({str(each.target): TokenNLL() for each in states.sites})
        self.divergence = MeanMetric(sync_on_compute=False)

    def span(self, bridges: Mapping[Site, Bridge]) -> None:
        """Translate by these bridges from now on."""
        self.model.add_module(BRIDGES, nn.ModuleDict({str(each.target): bridges[each] for each in self.states.sites}))
        self.crossing = True

    @property
    def adapter(self) -> nn.Module:
        """What translates: the adapter, or those of several sites."""
        found = [bridge.adapter for bridge in self.model.get_submodule(BRIDGES).values()]
        return found[0] if len(set(map(id, found))) == 1 else nn.ModuleList(found)

    def read(self, tokens: Tensor) -> dict[Site, States]:
        """The states of both models at every site for blocks (batch, length)."""
        rows = [self.states(row) for row in tokens]
        parts = {each: zip(*(row[each] for row in rows), strict=True) for each in self.states.sites}
        return {each: States(*map(torch.stack, columns)) for each, columns in parts.items()}

    def bridge_at(self, site: Site) -> Bridge:
        """What translates at a site."""
        return self.model.get_submodule(BRIDGES)[str(site.target)]

    def translate(self, site: Site, states: States) -> Tensor:
        """The target's hidden states as translated from the source's, (batch, length, target width)."""
        return self.bridge_at(site)(states.source, states.paired)

    @contextmanager
    def stitched(self, site: Site, states: Tensor) -> Iterator[None]:
        """Within this context, the target starts at a site's block with these states."""
        with injected(self.model, site.target, states.to(self.model.dtype)):
            yield

    def continue_texts(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """What the target writes after each prompt, which while `crossing` only the source has read (first site)."""
        if not self.crossing:
            return super().continue_texts(prompts, max_new_tokens)
        return continue_across(self, self.states.sites[0], prompts, max_new_tokens)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        if self.crossing:
            for score in (*self.site_scores.values(), self.divergence):
                score.reset()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        if not self.crossing:
            super().validation_step(batch, batch_idx)
            return
        labels, read = scored_labels(batch), self.read(batch["input_ids"])
        scored = (labels[:, 1:] != IGNORED).flatten()
        final = torch.stack([self.states.own(row) for row in batch["input_ids"]])
        with injected(self.model, self.states.last, final):
            own = self.logits(batch)[:, :-1].flatten(0, 1)[scored]
        nll = []
        for site, states in read.items():
            with self.stitched(site, self.translate(site, states)):
                logits = self.logits(batch)
            nll.append(self.score(logits, batch))
            self.site_scores[str(site.target)].update(logits, labels, nll[-1])
            self.divergence.update(token_divergence(logits[:, :-1].flatten(0, 1)[scored], own).double())
        self.score_documents(torch.stack(nll).mean(0), batch)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if not self.crossing:
            return
        values = {"val/kl": self.divergence.compute().double()}
        if len(self.site_scores) > 1:
            for layer, score in self.site_scores.items():
                values[f"val/layer_{layer}/loss"] = torch.tensor(score.compute()["loss"], dtype=torch.float64)
        self.log_dict(values)


TWO_MODELS = (CrossModelModule, CompressionModule)  # modules whose target reads what a source makes of the text


def require_one_model(module: CausalLMModule, what: str) -> None:
    """Raise UserError for a run on two models."""
    if isinstance(module, TWO_MODELS):
        raise UserError(f"{what} is of one model, and this run has two (the source would be left out)")
