"""The corpus that a dataset component gives: documents by split, or token blocks made on the spot."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

SPLITS = ("train", "validation", "test")
SHARES = {"train": 0.90, "validation": 0.05, "test": 0.05}
# A twentieth of a small text is too little to score on.
SMALL_SHARES = {"train": 0.80, "validation": 0.10, "test": 0.10}
SMALL = 100


@dataclass(frozen=True)
class Document:
    """A text that belongs to one split as a whole. Its name decides the split where the corpus has no splits."""

    name: str
    text: str


def named_by_content(text: str) -> Document:
    """A document named by a hash of its text, so that the name of its file does not decide the split."""
    return Document(hashlib.sha256(text.encode()).hexdigest()[:16], text)


@dataclass(frozen=True)
class Stream:
    """Documents that are too many to hold in memory: only as many are read as a size asks for.

    Args:
        origin: name of the documents. Equal origins must mean equal documents, since the token cache cannot hash texts
            without reading them.
        read: starts reading from the first document.
    """

    origin: str
    read: Callable[[], Iterator[Document]]


class TextDataset(Protocol):
    """A component that gives text."""

    def __call__(self, **arguments: Any) -> dict[str, Sequence[Document] | Stream]:
        """Documents under the keys `train`, `validation` and `test`.

        Where the corpus has no splits of its own, the key `all` holds the same documents in their original order.
        """


class SyntheticDataset(Protocol):
    """A component that makes token blocks itself; it is built with its own keys as keyword arguments."""

    def tokens(self, split: str, count: int, block_size: int, vocab_size: int, seed: int) -> torch.Tensor:
        """Token ids (count, block_size), int64, with other randomness in every split."""

    def position_groups(self, block_size: int) -> dict[str, slice] | None:
        """Groups of targets whose loss is reported apart; target i of a block is its token i + 1."""

    def entropy(self, block_size: int, vocab_size: int) -> float | None:
        """Nats per target that are left to a model that knows how the tokens are made; None: it is not known."""


def is_synthetic(component: Any) -> bool:
    """Whether a registered dataset is a `SyntheticDataset`."""
    return hasattr(component, "position_groups")


def split_of(name: str) -> str:
    """The split of a document, by its name alone: 90 % train, 5 % validation, 5 % test."""
    return _split_at(_fraction(name), SHARES)


def by_name(documents: Iterable[Document]) -> dict[str, list[Document]]:
    """Documents by the split of their names, and all of them in order under `all`."""
    documents = list(documents)
    by_split = {split: [document for document in documents if split_of(document.name) == split] for split in SPLITS}
    return {"all": documents} | by_split


def split_documents(documents: Sequence[Document]) -> dict[str, list[Document]]:
    """Documents by split, and all of them in order under `all`.

    A document's split is `split_of` its name; documents of the same text go together, so that no text is both trained
    on and scored. With fewer than 100 different documents, or where a split would stay empty, the documents are ordered
    by the hash, and the splits take 80, 10 and 10 % of them, at least one each.
    """
    keys = _keys(documents)
    assigned = {key: split_of(key) for key in keys}
    if len(assigned) < SMALL or set(assigned.values()) != set(SPLITS):
        assigned = _split_by_rank(set(keys), SMALL_SHARES)
    return {"all": list(documents)} | _gather(documents, keys, assigned, SPLITS)


def drop_trained(splits: dict[str, list[Any]], noun: str) -> list[str]:
    """Take out of validation and test, in place, every text that is trained on as well.

    Returns:
        A message for each split that lost some; it calls these objects with a `text` by `noun`.
    """
    trained, messages = {document.text for document in splits["train"]}, []
    for split in ("validation", "test"):
        kept = [document for document in splits[split] if document.text not in trained]
        if len(kept) < len(splits[split]):
            left_out = len(splits[split]) - len(kept)
            messages.append(f"{left_out} {split} {noun} are trained on as well and were left out")
            splits[split] = kept
    return messages


def halve(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """Two disjoint halves of the documents, by the hash of their names."""
    keys = _keys(documents)
    halves = _gather(documents, keys, _split_by_rank(set(keys), {"first": 0.5, "second": 0.5}), ("first", "second"))
    return halves["first"], halves["second"]


def _keys(documents: Sequence[Document]) -> list[str]:
    """The name that decides the split of each document: that of the first document with the same text."""
    names: dict[str, str] = {}
    return [names.setdefault(document.text, document.name) for document in documents]


def _fraction(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def _split_at(fraction: float, shares: dict[str, float]) -> str:
    for split, share in shares.items():
        if fraction < share:
            return split
        fraction -= share
    return split  # the shares may add up to a little less than 1


def _split_by_rank(keys: set[str], shares: dict[str, float]) -> dict[str, str]:
    """Every split but the first gets its share of the keys, at least one; the first gets the rest."""
    ranked = sorted(keys, key=_fraction)
    first, *later = shares
    assigned = {}
    for split in later:
        for _ in range(max(1, round(len(keys) * shares[split]))):
            if ranked:
                assigned[ranked.pop()] = split
    return assigned | dict.fromkeys(ranked, first)


def _gather(
    documents: Sequence[Document], keys: list[str], assigned: dict[str, str], splits: Sequence[str]
) -> dict[str, list[Document]]:
    by_split: dict[str, list[Document]] = {split: [] for split in splits}
    for document, key in zip(documents, keys, strict=True):
        by_split[assigned[key]].append(document)
    return by_split
