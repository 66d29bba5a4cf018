"""The kinds of corpora that datasets give, and the blocks of each: documents, examples, made-up sequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from data_modules.blocks import Blocks, choose_spread, one_document_each, pack
from data_modules.dataset_settings import DatasetSettings
from data_modules.documents import SPLITS, Stream, SyntheticDataset
from data_modules.instruction_blocks import assemble, encode
from data_modules.instructions import InstructionData
from data_modules.randomness import generator
from data_modules.tokens import Tokens, tokenize
from registries.registry import UserError

WHAT_HAPPENED = {
    "dropped": "are longer than a block and were left out (a larger dataset.block_size keeps them)",
    "cut prompts": "are longer than a block: their prompts lost their beginnings",
    "cut responses": "are longer than a block: their responses lost their ends",
}

# Which blocks there are does not depend on the run's seed, only the order in which training sees them does: all seeds
# are scored on the same blocks, and share what is cached for them.
CONTENT_SEED = 0


@dataclass(frozen=True)
class Packing:
    """How a corpus becomes blocks.

    Attributes:
        start: the token that every block starts with; None: none.
        warn: told what was left out or cut.
    """

    settings: DatasetSettings
    tokenizer: Any
    cache_dir: str | Path
    start: int | None
    warn: Callable[[str], None]

    @property
    def text_size(self) -> int:
        """Tokens of text in a block: all of it, or all behind the start token."""
        return self.settings.block_size - (self.start is not None)


class Corpus(Protocol):
    """What a dataset gives, as blocks.

    Attributes:
        is_text: whether its tokens stand for text.
    """

    is_text: bool

    def blocks(self, split: str) -> Blocks:
        """The blocks of `train`, `validation` or `test`, as many as its size asks for, or of `all`, in order."""
        ...

    def as_prompt(self, text: str) -> str:
        """A text as a model is given it to continue."""
        ...

    def position_groups(self) -> Mapping[str, slice]:
        """Groups of target positions of a block's text whose loss is reported apart."""
        ...

    def entropy(self) -> float | None:
        """Nats per target that no model can do without; None where it is not known, as for text."""
        ...


def corpus_of(content: Mapping[str, Any] | InstructionData | SyntheticDataset, packing: Packing) -> Corpus:
    """The corpus of what a dataset component gave."""
    if isinstance(content, InstructionData):
        return ExampleCorpus(content, packing)
    return (DocumentCorpus if isinstance(content, Mapping) else SyntheticCorpus)(content, packing)


@dataclass(frozen=True)
class DocumentCorpus:
    """Documents by split, read through from block to block."""

    documents: Mapping[str, Any]
    packing: Packing

    is_text = True

    def blocks(self, split: str) -> Blocks:
        """See `Corpus`."""
        if split == "all":
            tokens = [self._tokens(name) for name in (["all"] if "all" in self.documents else SPLITS)]
            documents = torch.cat([item.documents() for item in tokens])
            return self._packed(torch.cat([item.ids for item in tokens]), documents, split)
        tokens, size = self._tokens(split), self.packing.settings.size(split)
        if split == "train":
            order = torch.randperm(len(tokens.starts) - 1, generator=generator("documents", CONTENT_SEED))
            tokens = tokens.in_order(order)
        blocks = self._packed(tokens.ids, tokens.documents(), split)
        if size is not None and size > len(blocks):
            name, block_size = self.packing.settings.name, self.packing.settings.block_size
            self.packing.warn(f"dataset {name!r} has {len(blocks)} {split} blocks of {block_size} tokens, not {size}")
        if size is None or size >= len(blocks):
            return blocks
        return blocks.select(torch.arange(size) if split == "train" else choose_spread(len(blocks), size))

    def as_prompt(self, text: str) -> str:
        """See `Corpus`."""
        return text

    def position_groups(self) -> Mapping[str, slice]:
        """See `Corpus`."""
        return {}

    def entropy(self) -> None:
        """See `Corpus`."""
        return

    def _tokens(self, split: str) -> Tokens:
        """All tokens of a split; of a stream, as many as its size asks for."""
        documents, settings = self.documents[split], self.packing.settings
        size = settings.size(split) if isinstance(documents, Stream) else None
        limit = size and size * settings.block_size
        return tokenize(documents, self.packing.tokenizer, self.packing.cache_dir, limit)

    def _packed(self, ids: torch.Tensor, documents: torch.Tensor, split: str) -> Blocks:
        """Blocks of a text, (tokens,) with the documents that they are of."""
        blocks = pack(ids, documents, self.packing.text_size)
        if len(blocks):
            return blocks.begun_with(self.packing.start)
        total = sum(len(self._tokens(name).ids) for name in SPLITS)
        settings = self.packing.settings
        raise UserError(
            f"dataset {settings.name!r} has {len(ids)} tokens in split {split} ({total} in all splits), and one block "
            f"needs {settings.block_size}: set dataset.block_size to less, or take a longer text with more documents"
        )


@dataclass(frozen=True)
class ExampleCorpus:
    """Prompts with responses; several in a block, none of which sees another."""

    data: InstructionData
    packing: Packing

    is_text = True

    def blocks(self, split: str) -> Blocks:
        """Blocks of the split's examples: of training at random, of the others spread over all; see `Corpus`."""
        data, packing = self.data, self.packing
        settings, examples = packing.settings, data.examples[split]
        size = None if split == "all" else settings.size(split)
        encoded = encode(examples, packing.tokenizer, data.settings, settings.block_size, packing.start)
        for what, count in encoded.counts.items():
            packing.warn(f"dataset {settings.name!r}: {count} {split} examples {WHAT_HAPPENED[what]}")
        rows = encoded.rows
        if not examples:
            raise UserError(f"dataset {settings.name!r} has no {split} examples: give it more records")
        if not rows:
            raise UserError(
                f"dataset {settings.name!r} has no {split} example that fits into {settings.block_size} tokens "
                f"({len(examples)} do not, with dataset.too_long={data.settings.too_long}): set dataset.block_size to "
                "more"
            )
        if size is not None and size > len(rows):
            packing.warn(f"dataset {settings.name!r} has {len(rows)} {split} examples, not {size}")
        if split == "train":
            chosen = torch.randperm(len(rows), generator=generator("documents", CONTENT_SEED))[:size]
        elif size is None or size > len(rows):
            chosen = torch.arange(len(rows))
        else:
            chosen = choose_spread(len(rows), size)
        return assemble([rows[index] for index in chosen], settings.block_size, data.settings.packing, self._filler())

    def as_prompt(self, text: str) -> str:
        """See `Corpus`."""
        return self.data.as_prompt(text)

    def position_groups(self) -> Mapping[str, slice]:
        """See `Corpus`."""
        return {}

    def entropy(self) -> None:
        """See `Corpus`."""
        return

    def _filler(self) -> int:
        """The token that fills up blocks: no example sees it."""
        tokenizer = self.packing.tokenizer
        return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token), 0)


@dataclass(frozen=True)
class SyntheticCorpus:
    """Sequences that a component makes up, each a block and a document of its own."""

    component: SyntheticDataset
    packing: Packing

    is_text = False

    def blocks(self, split: str) -> Blocks:
        """See `Corpus`."""
        if split == "all":
            return one_document_each(torch.cat([self.blocks(name).tokens for name in SPLITS]))
        packing = self.packing
        count, vocabulary = packing.settings.size(split), len(packing.tokenizer)
        tokens = self.component.tokens(split, count, packing.text_size, vocabulary, CONTENT_SEED)
        return one_document_each(tokens).begun_with(packing.start)

    def as_prompt(self, text: str) -> str:
        """See `Corpus`."""
        return text

    def position_groups(self) -> Mapping[str, slice]:
        """See `Corpus`."""
        return self.component.position_groups(self.packing.text_size) or {}

    def entropy(self) -> float | None:
        """See `Corpus`. Behind a start token, the first token of a block is a target too, and then it is not told."""
        if self.packing.start is not None:
            return None
        return self.component.entropy(self.packing.text_size, len(self.packing.tokenizer))
