"""Documents -> one long sequence of token ids; and the bytes of each token of a vocabulary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from data_modules.caches.token_cache import cached_tensors
from data_modules.documents import Document, Stream
from data_modules.encoding import encode_texts

FORMAT = 2  # raise it when the same documents would give other tokens than before
UNKNOWN_BYTES = "unknown_bytes"  # key of a tokenizer's settings: UTF-8 bytes of an unknown word, on the average
BATCH = 256  # documents tokenised at once, in parallel


@dataclass(frozen=True)
class Tokens:
    """Documents as tokens, each followed by the end-of-text token.

    Args:
        ids: (tokens,), int32.
        starts: (documents + 1,), int64: the index in `ids` at which each document starts, and the last one's end.
    """

    ids: torch.Tensor
    starts: torch.Tensor

    def in_order(self, order: torch.Tensor) -> Tokens:
        """These tokens with the documents in another order; `order` (documents,) holds the documents' numbers."""
        lengths = self.starts.diff()
        documents = self.ids.split(lengths.tolist())
        ids = torch.cat([documents[index] for index in order.tolist()]) if len(order) else self.ids
        return Tokens(ids, torch.cat([self.starts[:1], lengths[order].cumsum(0)]))

    def documents(self) -> torch.Tensor:
        """(tokens,), int64: the number of each token's document."""
        return torch.arange(len(self.starts) - 1).repeat_interleave(self.starts.diff())


def tokenize(
    documents: Sequence[Document] | Stream, tokenizer: Any, cache_dir: str | Path, limit: int | None = None
) -> Tokens:
    """The tokens of documents, from the cache if they were tokenised before.

    The tokenizer's end token follows every document. A start token stands before blocks, not before documents (see
    `Blocks.begun_with`). A special token that a document writes out is plain text.

    Args:
        limit: read a stream until there are this many tokens; the last document is kept whole. None reads all of it.

    Raises:
        UserError: the cache cannot be written.
    """
    if isinstance(documents, Stream):
        identity, read = [documents.origin, limit], documents.read
    else:
        identity, read, limit = [document.text for document in documents], lambda: iter(documents), None
    key = hashlib.sha256(json.dumps([FORMAT, tokenizer_fingerprint(tokenizer), identity]).encode()).hexdigest()
    folder = Path(cache_dir).expanduser() / "tokens"
    return Tokens(**cached_tensors(folder / f"{key}.safetensors", lambda: _tokenize(read(), tokenizer, limit)))


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Equal for tokenizers that give equal tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        state = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    else:
        state = json.loads(backend.to_str())
        # These are left from an earlier call; every call sets them anew.
        state.pop("truncation", None)
        state.pop("padding", None)
    state = json.dumps([state, tokenizer.eos_token_id], sort_keys=True)
    return hashlib.sha256(state.encode()).hexdigest()


def vocabulary_size(tokenizer: Any) -> int:
    """One more than the largest token id, since ids may be left out between tokens."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def unknown_token(tokenizer: Any) -> int | None:
    """The token that a vocabulary of words has for all other words; None for vocabularies that can write any text."""
    from tokenizers.models import WordLevel

    backend = getattr(tokenizer, "backend_tokenizer", None)
    return tokenizer.unk_token_id if backend is not None and isinstance(backend.model, WordLevel) else None


def token_bytes(tokenizer: Any) -> torch.Tensor:
    """The number of UTF-8 bytes that each token stands for, (vocabulary,), int64; 0 for special tokens.

    Of a vocabulary of words that says how long an unknown word is, `unknown_bytes`, they are float64: every word has a
    byte more for the space before it, and the token of unknown words has their average.
    """
    sizes = torch.tensor([len(content or b"") for content in token_contents(tokenizer)])
    unknown, average = unknown_token(tokenizer), tokenizer.init_kwargs.get(UNKNOWN_BYTES)
    if unknown is None or average is None:
        return sizes
    sizes = torch.where(sizes > 0, sizes + 1, sizes).double()
    sizes[unknown] = average + 1
    return sizes


def token_contents(tokenizer: Any) -> list[bytes | None]:
    """The UTF-8 bytes that each token stands for, which may be a part of a character; None for special tokens.

    They are exact for byte-level BPE, and for SentencePiece but for the space that some of these tokenizers put before
    a text. For tokenizers that drop spaces they are those of the words alone.
    """
    strings = tokenizer.convert_ids_to_tokens(list(range(vocabulary_size(tokenizer))))
    alphabet = _byte_alphabet(tokenizer)
    contents: list[bytes | None] = [_string_content(string or "", alphabet) for string in strings]
    for token, added in tokenizer.added_tokens_decoder.items():  # these stand for their literal text
        contents[token] = None if added.special else added.content.encode()
    for token in tokenizer.all_special_ids:
        contents[token] = None
    return contents


def _tokenize(documents: Iterator[Document], tokenizer: Any, limit: int | None) -> dict[str, torch.Tensor]:
    pieces, lengths, total = [], [], 0
    while limit is None or total < limit:
        # A stream may be slow and far longer than the limit, so few documents are read at first.
        batch = list(islice(documents, BATCH if limit is None else min(BATCH, 8 + len(lengths))))
        if not batch:
            break
        for ids in _encode([document.text for document in batch], tokenizer):
            pieces.append(torch.tensor(ids, dtype=torch.int32))
            lengths.append(len(ids))
            total += len(ids)
            if limit is not None and total >= limit:
                break
    starts = torch.tensor([0, *lengths]).cumsum(0)
    return {"ids": torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int32), "starts": starts}


def _encode(texts: list[str], tokenizer: Any) -> Iterable[list[int]]:
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for ids in encode_texts(tokenizer, texts):
        yield ids + end


def _byte_alphabet(tokenizer: Any) -> dict[str, int]:
    """The 256 characters that stand for bytes in byte-level tokenizers; empty for all others."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else {}
    if "ByteLevel" not in json.dumps([state.get("pre_tokenizer"), state.get("decoder")]):
        return {}
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}


def _string_content(string: str, alphabet: dict[str, int]) -> bytes:
    if alphabet and all(character in alphabet for character in string):
        return bytes(alphabet[character] for character in string)
    if len(string) == 6 and string.startswith("<0x") and string.endswith(">"):  # SentencePiece's spelling of a byte
        return bytes([int(string[3:5], 16)])
    return string.replace("\u2581", " ").encode()  # SentencePiece's spelling of a space
