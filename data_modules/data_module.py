"""The data module of everything that is trained on blocks of tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from data_modules.blocks import (
    BlockDataset,
    Blocks,
    EndlessBlocks,
    StepSampler,
    doubling_groups,
)
from data_modules.corpora import Corpus, Packing, corpus_of
from data_modules.dataset_settings import DatasetSettings
from data_modules.documents import SPLITS, SyntheticDataset
from data_modules.encoding import start_token
from data_modules.instruction_blocks import IGNORED
from data_modules.instructions import InstructionData
from data_modules.tensor_files import tensors_sha256
from data_modules.tokens import token_bytes, unknown_token
from registries.registry import UserError

log = logging.getLogger(__name__)


class BlockDataModule(LightningDataModule):
    """Blocks of tokens (blocks, block_size) for training, validation and test; made at first use.

    Args:
        build_corpus: makes what the component gives: documents by split, `InstructionData`, or a `SyntheticDataset`.
        seed: decides the order in which training sees the blocks.
        cache_dir: tokens are kept in its folder `tokens`.
        accumulate_grad_batches: batches per optimizer step.
    """

    def __init__(
        self,
        build_corpus: Callable[[], Mapping[str, Any] | InstructionData | SyntheticDataset],
        settings: DatasetSettings,
        tokenizer: Any,
        seed: int,
        cache_dir: str | Path,
        accumulate_grad_batches: int = 1,
    ):
        super().__init__()
        self.name, self.settings = settings.name, settings
        self.tokenizer = tokenizer
        self.seed = seed
        self.cache_dir = cache_dir
        self.accumulate_grad_batches = accumulate_grad_batches
        self.warnings: list[str] = []
        self._packs: dict[str, Blocks] = {}
        self._build_corpus = build_corpus

    @property
    def train_blocks(self) -> torch.Tensor:
        """(blocks, block_size): the first `train_size` ones (examples of instruction data), in random order."""
        return self.blocks("train")

    @property
    def validation_blocks(self) -> torch.Tensor:
        """(blocks, block_size): `val_size` ones, spread over all documents."""
        return self.blocks("validation")

    @property
    def test_blocks(self) -> torch.Tensor:
        """(blocks, block_size): `test_size` ones, spread over all documents."""
        return self.blocks("test")

    @property
    def all_blocks(self) -> torch.Tensor:
        """(blocks, block_size): every document in order, regardless of the sizes (which still limit streams)."""
        return self.blocks("all")

    def blocks(self, split: str) -> torch.Tensor:
        """The blocks of `train`, `validation`, `test` or `all`."""
        return self._packed(split).tokens

    def positions(self, split: str) -> torch.Tensor | None:
        """(blocks, block_size): places of the tokens in their examples, where these are kept apart; else None."""
        return self._packed(split).positions

    def as_prompt(self, text: str) -> str:
        """A text as a model is given it to continue: put into the template of instruction data."""
        return self._corpus.as_prompt(text)

    @cached_property
    def token_bytes(self) -> torch.Tensor | None:
        """(vocabulary,) UTF-8 bytes of each token; None for a synthetic dataset, whose tokens stand for no text."""
        return token_bytes(self.tokenizer) if self._corpus.is_text else None

    @cached_property
    def unknown(self) -> int | None:
        """The token that stands for unknown words; None where no word is unknown, or tokens stand for no text."""
        return unknown_token(self.tokenizer) if self._corpus.is_text else None

    @cached_property
    def start(self) -> int | None:
        """The token that every block starts with; None: none."""
        return start_token(self.tokenizer, self.settings.start_token)

    @property
    def text_size(self) -> int:
        """Tokens of text in a block: all of it, or all behind the start token."""
        return self._packing.text_size

    def position_groups(self, block_size: int | None = None) -> dict[str, slice]:
        """Groups of target positions whose loss is reported apart; target i is a block's token i + 1."""
        groups = self._corpus.position_groups()
        if self.start is not None:  # the first token of what was generated is a target too
            groups = {name: slice(part.start + bool(part.start), part.stop + 1) for name, part in groups.items()}
        doubling = doubling_groups(block_size or self.settings.block_size) if self.settings.loss_by_position else {}
        return {**groups, **doubling}

    def entropy(self) -> float | None:
        """Nats per target that no model can do without; None where it is not known, as for text."""
        return self._corpus.entropy()

    def describe(self) -> dict[str, Any]:
        """Name, sha256 of the tokens used, start token, the warnings, and of each split what `counts` tells.

        Bytes are None for a synthetic dataset, whose tokens stand for no text. Instruction data has the number of
        `examples` beside.
        """
        counts = {split: self.counts(split) for split in SPLITS}
        start = None if self.start is None else self.tokenizer.convert_ids_to_tokens(self.start)
        return {
            "name": self.name,
            "sha256": self.sha256(*SPLITS),
            "start_token": start,
            **counts,
            "warnings": list(self.warnings),
        }

    def sha256(self, *splits: str) -> str:
        """Hash of everything that training on these splits, or scoring on them, depends on."""
        content = {}
        for split in splits:
            blocks = self._packed(split)
            content[split] = blocks.tokens
            if blocks.labels is not None:
                content |= {f"{split} labels": blocks.labels, f"{split} documents": blocks.documents}
        return tensors_sha256(content)

    def counts(self, split: str) -> dict[str, int | None]:
        """Blocks, tokens of text, scored tokens and bytes of a split; see `describe`."""
        blocks = self._packed(split)
        is_text = blocks.documents >= 0
        if blocks.labels is None and self.start is not None:
            is_text = is_text[:, 1:]
        real = blocks.tokens[:, -is_text.shape[1] :][is_text]
        size = None if self.token_bytes is None else int(self.token_bytes[real].sum())
        labels = blocks.tokens if blocks.labels is None else blocks.labels
        scored = int((labels[:, 1:] != IGNORED).sum())
        counts = {"blocks": len(blocks), "tokens": real.numel(), "scored": scored, "bytes": size}
        if blocks.labels is not None:
            counts["examples"] = len(blocks.documents.unique()) - bool((blocks.documents < 0).any())
        return counts

    def prepare_data(self) -> None:
        """Fill the token cache; Lightning calls this in one process, before the others start reading."""
        for split in SPLITS:
            self.blocks(split)

    def fit_loader(self, steps: int, start: int, blocks_per_step: int, stream: str) -> DataLoader:
        """Training batches {"input_ids": (blocks_per_step, block_size)} of the steps start, ..., steps - 1.

        What a step gets depends on (seed, stream, step) alone. `len()` is `steps`, whatever the start.
        """
        return DataLoader(
            EndlessBlocks(self._packed("train"), self.seed, stream),
            batch_sampler=StepSampler(steps, start, blocks_per_step),
            **self._loader_options(),
        )

    def train_dataloader(self) -> DataLoader:
        """One epoch, `batch_size * accumulate_grad_batches` blocks per step, in the same order at every call."""
        blocks_per_step = self.settings.batch_size * self.accumulate_grad_batches
        steps = max(1, len(self.train_blocks) // blocks_per_step)
        return self.fit_loader(steps, 0, blocks_per_step, "train")

    def val_dataloader(self) -> DataLoader:
        """The validation blocks in order, `batch_size` at a time."""
        return self.loader("validation")

    def test_dataloader(self) -> DataLoader:
        """The test blocks in order, `batch_size` at a time."""
        return self.loader("test")

    def loader(self, split: str) -> DataLoader:
        """The blocks of a split in order, `batch_size` at a time, the last batch as small as it comes out.

        Beside `input_ids` they have `documents`: which document each token is of.
        """
        return DataLoader(BlockDataset(self._packed(split)), self.settings.batch_size, **self._loader_options())

    def _loader_options(self) -> dict[str, Any]:
        # A loader without a generator draws from the global one, and so would change the dropout that follows.
        return {"num_workers": self.settings.num_workers, "generator": torch.Generator()}

    @cached_property
    def _corpus(self) -> Corpus:
        content = self._build_corpus()
        for message in content.notes if isinstance(content, InstructionData) else ():
            self._warn(f"dataset {self.name!r}: {message}")
        return corpus_of(content, self._packing)

    @cached_property
    def _packing(self) -> Packing:
        return Packing(self.settings, self.tokenizer, self.cache_dir, self.start, self._warn)

    def _packed(self, split: str) -> Blocks:
        if split not in (*SPLITS, "all"):
            raise UserError(f"split={split!r} is none of: {', '.join(SPLITS)}, all")
        if split not in self._packs:
            self._packs[split] = self._corpus.blocks(split)
        return self._packs[split]

    def _warn(self, message: str) -> None:
        self.warnings.append(message)
        log.warning(message)
