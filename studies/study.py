"""A study that is running."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data_modules.data_module import BlockDataModule
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.config import Config
from lightning_modules.load import load_language_model
from lightning_modules.preflight import require_own_logits
from lightning_modules.processes import from_first, is_first
from lightning_modules.training.trainer import evaluate
from lightning_modules.weights import TOKENIZER_FOLDER
from studies.progress import say
from studies.run.lifecycle import RunRecord
from studies.run.scores import Scores


@dataclass(frozen=True)
class Study:
    """What a study was told, what it reads, and what it writes to.

    Attributes:
        loader: of the model.
        tokenizer: of the model.
        record: of the run.
    """

    cfg: Config
    loader: Any
    tokenizer: Any
    data: BlockDataModule
    record: RunRecord

    def load_model(self) -> CausalLMModule:
        """The untouched model, whose logits are those that training will compute."""
        if self.cfg.tokenizer.num_tokens is not None and is_first():
            self.tokenizer.save_pretrained(self.record.folder.path / TOKENIZER_FOLDER)
        say("loading the model" if not self.cfg.reads_two_models else "loading the models")
        module = load_language_model(self.cfg, self.loader, self.tokenizer)
        require_own_logits(module.model)
        return module

    def score(self, module: CausalLMModule, split: str) -> Scores:
        """The scores of a model on a split."""

        def compute() -> Scores:
            metrics = evaluate(module, self.data.loader(split), self.cfg.trainer)
            seconds, tokens_per_s = metrics.pop("seconds"), metrics.pop("tokens_per_s")
            return Scores(metrics, module.documents.compute(), seconds, tokens_per_s)

        return from_first(compute)
