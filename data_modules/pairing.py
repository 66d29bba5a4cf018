"""The same text through two tokenizers, and which token of the one may tell what of the other.

Tokens are compared by where they end in the text, in bytes. A state of the source may be used at a target's token only
if the source's token ends no later: what is read there is then nothing that the target has not read itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data_modules.encoding import StartToken, start_token
from data_modules.tokens import token_contents, tokenizer_fingerprint
from registries.registry import UserError

NONE = -1  # no source token ends early enough


class Paired(NamedTuple):
    """A text of the target as the source reads it.

    Attributes:
        tokens: (source length,) the source's tokens.
        index: (length,) for each target token, the last source token that ends no later; -1 where there is none, or
            where it is one that begins a text and tells nothing of it.
        back: (source length,) the same for each source token, of the target's tokens.
    """

    tokens: Tensor
    index: Tensor
    back: Tensor


class Pairing:
    """Turns tokens of the target into tokens of the source with their pairing.

    Documents are told apart by the target's special tokens. The source reads each as its tokenizer gives it, with its
    own end token where the target has one. An end token counts as one more byte: that a document ends is known only
    after it. A start token stands before the whole text, of either model, and tells nothing of it.

    Equal tokenizers give the same tokens, each paired with itself, even where the text was cut inside of a word.

    Args:
        start: whether texts begin with a start token, see `data_modules.encoding.start_token`.

    Raises:
        UserError: the source's tokenizer does not tell where its tokens are in the text.
    """

    def __init__(self, target_tokenizer: Any, source_tokenizer: Any, start: StartToken = "auto"):
        self.source = source_tokenizer
        self.equal = tokenizer_fingerprint(target_tokenizer) == tokenizer_fingerprint(source_tokenizer)
        if not self.equal and not getattr(source_tokenizer, "is_fast", False):
            raise UserError("the source's tokenizer is no fast one: it does not tell where its tokens are in the text")
        self.contents = token_contents(target_tokenizer)
        self.source_contents = token_contents(source_tokenizer)
        self.end = target_tokenizer.eos_token_id
        self.start, self.source_start = (start_token(one, start) for one in (target_tokenizer, source_tokenizer))
        # Of the target, for a text's first place where no other token is known.
        self.opening = self.start if self.start is not None else self.end or 0

    def __call__(self, tokens: Tensor) -> Paired:
        """Pair a text: (length,) tokens of the target."""
        if self.equal:
            return Paired(tokens, torch.arange(len(tokens)), torch.arange(len(tokens)))
        begins = self.start is not None and tokens[:1].tolist() == [self.start]
        target_ends = [0] if begins else []
        source = [] if self.source_start is None else [self.source_start]
        source_ends = [0] * len(source)
        place = 0
        for piece, closing in self._pieces(tokens[begins:].tolist()):
            ends = list(accumulate(len(self.contents[token]) for token in piece))
            ids, places = self._read(b"".join(self.contents[token] for token in piece))
            source += ids
            source_ends += [place + end for end in places]
            target_ends += [place + end for end in ends]
            place += ends[-1] if ends else 0
            if closing is not None:
                place += 1
                target_ends.append(place)
                if closing == self.end and self.source.eos_token_id is not None:
                    source.append(self.source.eos_token_id)
                    source_ends.append(place)
        if len(source) == (self.source_start is not None):
            raise UserError("a block of tokens holds no text that the source could read")
        read = _ends_in_time(source_ends, target_ends, _silent(source, self.source_contents, self.source.eos_token_id))
        back = _ends_in_time(target_ends, source_ends, _silent(tokens.tolist(), self.contents, self.end))
        return Paired(torch.tensor(source), read, back)

    def _pieces(self, tokens: list[int]) -> Iterator[tuple[list[int], int | None]]:
        """The stretches of text between special tokens, each with the one that closes it (None at the end)."""
        start = 0
        for place, token in enumerate(tokens):
            if self.contents[token] is None:
                yield tokens[start:place], token
                start = place + 1
        if start < len(tokens):
            yield tokens[start:], None

    def _read(self, content: bytes) -> tuple[list[int], list[int]]:
        """The source's tokens of a stretch of bytes (which may begin or end within a character), and their ends."""
        text, kept = _as_text(content)
        if not text:
            return [], []
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        encoded = self.source(text, return_offsets_mapping=True, **options)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        read = [self.source_contents[token] or b"" for token in ids]
        ends, plain = list(accumulate(map(len, read))), text.encode()
        if b"".join(read) == b" " + plain:  # the space that SentencePiece puts before a text
            ends = [max(0, end - 1) for end in ends]
        elif b"".join(read) != plain:
            ends = _ends_by_offsets(text, offsets)
        return ids, [kept[end - 1] + 1 if end else 0 for end in ends]


def _silent(tokens: list[int], contents: list[bytes | None], end: int | None) -> list[bool]:
    """Which tokens stand for nothing that is in the text, as one that begins it; the end token tells that it ends."""
    return [contents[token] is None and token != end for token in tokens]


def _ends_in_time(ends: list[int], others: list[int], silent: list[bool]) -> Tensor:
    """For each of the others, the last token that ends no later; -1 where there is none, or a silent one."""
    index = torch.searchsorted(torch.tensor(ends), torch.tensor(others), right=True) - 1
    return index.masked_fill(torch.tensor(silent)[index.clamp(min=0)], NONE)


def _as_text(content: bytes) -> tuple[str, list[int]]:
    """The characters that are whole in a stretch of bytes, and for each of their bytes where it lies there.

    Where bytes in the midst are no UTF-8, a character may be said to lie later than it does, never earlier.
    """
    text = content.decode(errors="ignore")
    kept, place = [], len(content)
    for byte in reversed(text.encode()):
        place = content.rindex(byte, 0, place)
        kept.append(place)
    return text, kept[::-1]


def _ends_by_offsets(text: str, offsets: list[tuple[int, int]]) -> list[int]:
    """Where tokens end, in bytes, by the characters that a tokenizer which changes the text says they cover.

    Some leave out spaces at the ends of tokens: what lies between two tokens is taken as part of the first.
    """
    sizes = [0, *accumulate(len(character.encode()) for character in text)]
    starts = [start for start, _ in offsets]
    ends = [max(end, start) for (_, end), start in zip(offsets, [*starts[1:], len(text)], strict=True)]
    return list(accumulate((sizes[end] for end in ends), max))
