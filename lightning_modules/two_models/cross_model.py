"""The LightningModule of studies on two models: the target, part of whose states are translated from the source's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from data_modules.batches import scored_labels
from data_modules.data_module import BlockDataModule
from data_modules.encoding import encode_prompt
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.hidden_states.injection import injected
from lightning_modules.length_guard import length_limit
from lightning_modules.metrics import TokenNLL
from lightning_modules.nll import IGNORED, token_divergence
from lightning_modules.two_models.bridge import Bridge
from lightning_modules.two_models.continuation import Continuation, until_end
from lightning_modules.two_models.paired_states import PairedStates, ShuffledStates, Site, States
from registries.registry import UserError

BRIDGES = "bridges"  # the submodule of the target that holds what is translated at which block


class CrossModelModule(CausalLMModule):
    """A causal language model that reads a text through another one.

    It is scored as every model is, but its hidden states entering a block are those that the source's were translated
    to. With several sites, each is scored by itself and the loss is the mean.

    Args:
        target: the module of the model that is written to. The bridges become a part of its model.
        source_model, source_tokenizer: of the model that is read.
        states: of both models at any text.
        bridges: what translates, by site.
    """

    reads_two_models = True

    def __init__(
        self,
        target: CausalLMModule,
        source_model: nn.Module,
        source_tokenizer: Any,
        states: PairedStates | ShuffledStates,
        bridges: Mapping[Site, Bridge],
    ):
        super().__init__(**target.construction())
        self.source_model, self.source_tokenizer = source_model, source_tokenizer
        self.states, self.bridges = states, dict(bridges)
        self.model.add_module(BRIDGES, nn.ModuleDict({str(site.target): bridges[site] for site in states.sites}))
        self.site_scores = nn.ModuleDict({str(site.target): TokenNLL() for site in states.sites})
        self.divergence = MeanMetric(sync_on_compute=False)

    @property
    def between(self) -> nn.Module:
        """What lies between the two models."""
        return self.model.get_submodule(BRIDGES)

    @property
    def adapter(self) -> nn.Module:
        """What translates: the adapter, or those of several sites."""
        adapters = [bridge.adapter for bridge in self.bridges.values()]
        return adapters[0] if len(set(map(id, adapters))) == 1 else nn.ModuleList(adapters)

    def require_data(self, data: BlockDataModule) -> None:
        require_text(data)

    def read(self, tokens: Tensor) -> dict[Site, States]:
        """The states of both models at every site for blocks (batch, length)."""
        rows = [self.states(row) for row in tokens]
        parts = {site: zip(*(row[site] for row in rows), strict=True) for site in self.states.sites}
        return {site: States(*map(torch.stack, columns)) for site, columns in parts.items()}

    def translate(self, site: Site, states: States) -> Tensor:
        """The target's hidden states as translated from the source's, (batch, length, target width)."""
        return self.bridges[site](states.source, states.paired)

    @contextmanager
    def stitched(self, site: Site, states: Tensor) -> Iterator[None]:
        """Within this context, the target starts at a site's block with these states."""
        with injected(self.model, site.target, states.to(self.model.dtype)):
            yield

    @torch.no_grad()
    def continue_texts(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """What the target writes, by greedy decoding, after prompts that only the source has read (first site).

        At the positions of the prompt's tokens, the blocks from the site on get the source's translated states. The
        blocks below see the new tokens alone, after a start or end token in the position of the first one, as models
        need some first token to look at when there is nothing to look at. Positions are those of the prompt in the
        target's tokens.
        """
        site, device = self.states.sites[0], self.model.device
        rows = [torch.tensor(encode_prompt(self.tokenizer, prompt, self.start)) for prompt in prompts]
        longest, width = max(map(len, rows)), self.model.config.get_text_config().hidden_size
        states = torch.zeros(len(rows), longest, width, device=device)
        mask = torch.zeros(len(rows), longest, dtype=torch.long, device=device)
        for index, row in enumerate(rows):
            read, paired = self.states.read(row)
            states[index, longest - len(row) :] = self.bridges[site](read[site].to(device), paired.to(device))
            mask[index, longest - len(row) :] = 1
        limit = length_limit(self.model)  # where the target reads no longer texts, what it writes ends
        steps = max_new_tokens if limit is None else min(max_new_tokens, limit.tokens - longest + 1)
        continuation, logits = self.continuation(site, states, mask)
        token = logits.argmax(-1)
        written = [token]
        for _ in range(steps - 1):
            token = continuation.step(token[:, None]).argmax(-1)
            written.append(token)
        return [until_end(self.tokenizer, row.tolist()) for row in torch.stack(written, 1)]

    def continuation(self, site: Site, states: Tensor, mask: Tensor) -> tuple[Continuation, Tensor]:
        """A continuation by the target after translated states, see `Continuation.begin`, and the logits after them."""
        continuation = Continuation(self.model, site.target)
        first = self.states.pairing.opening if self.states.first_token == "constant" else None
        return continuation, continuation.begin(states.to(self.model.dtype), mask, first)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        for score in (*self.site_scores.values(), self.divergence):
            score.reset()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
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
        values = {"val/kl": self.divergence.compute().double()}
        if len(self.site_scores) > 1:
            for layer, score in self.site_scores.items():
                values[f"val/layer_{layer}/loss"] = torch.tensor(score.compute()["loss"], dtype=torch.float64)
        self.log_dict(values)


def require_text(data: BlockDataModule) -> None:
    """Raise UserError unless the data are plain text, which another tokenizer can read."""
    if data.token_bytes is None or data.positions("train") is not None:
        raise UserError(
            f"an adapter pairs the tokens of two models on plain text, and dataset {data.name!r} is "
            f"{'made of tokens' if data.token_bytes is None else 'made of examples'}: choose one of documents "
            "(dataset=pydoc, text, wikitext2, ...)"
        )
