"""One text through the tokenizers of two models, and for each token of the one the last token of the other in time.

Tokens are compared by their ends in the text, in bytes. A state of the source may be used at a target token only if the
source token ends no later: then the source has read nothing there that the target has not read itself.
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

NONE = -1  # the index where no token ends early enough


class Paired(NamedTuple):
    """A text of the target as the source reads it.

    Attributes:
        tokens: (source length,) the source's tokens.
        index: (length,) for each target token, the index of the last source token that ends no later; -1 where there is
            none, or where it is a start token, which tells nothing of the text.
        back: (source length,) the same in the other direction: for each source token, an index of a target token.
    """

    tokens: Tensor
    index: Tensor
    back: Tensor


class Pairing:
    """Turns tokens of the target into tokens of the source with their pairing.

    Documents are told apart by the target's special tokens. The source reads each document through its own tokenizer,
    with its own end token where the target has one. An end token counts as one more byte, since only then it is known
    that a document ends. A start token of either model stands before the whole text and tells nothing of it.

    Equal tokenizers give the same tokens, each paired with itself, even where the text was cut inside of a word.

    Args:
        start: whether texts begin with a start token, see `data_modules.encoding.start_token`.

    Raises:
        UserError: the source's tokenizer does not give the offsets of its tokens in the text.
    """

    def __init__(self, target_tokenizer: Any, source_tokenizer: Any, start: StartToken = "auto"):
        self.source_tokenizer = source_tokenizer
        self.equal = tokenizer_fingerprint(target_tokenizer) == tokenizer_fingerprint(source_tokenizer)
        if not self.equal and not getattr(source_tokenizer, "is_fast", False):
            raise UserError("the source's tokenizer is no fast one: it does not tell where its tokens are in the text")
        self.contents = token_contents(target_tokenizer)
        self.source_contents = token_contents(source_tokenizer)
        self.end = target_tokenizer.eos_token_id
        self.start, self.source_start = start_token(target_tokenizer, start), start_token(source_tokenizer, start)
        # A target token to open a text with where nothing else of the text is known.
        self.opening = self.start if self.start is not None else self.end or 0

    def __call__(self, tokens: Tensor) -> Paired:
        """Pair a text: (length,) tokens of the target."""
        if self.equal:
            return Paired(tokens, torch.arange(len(tokens)), torch.arange(len(tokens)))
        has_start = self.start is not None and tokens[:1].tolist() == [self.start]
        target_ends = [0] if has_start else []
        source_end = self.source_tokenizer.eos_token_id
        source_tokens = [] if self.source_start is None else [self.source_start]
        source_ends = [0] * len(source_tokens)
        offset = 0
        for piece, closing in self._pieces(tokens[has_start:].tolist()):
            ends = list(accumulate(len(self.contents[token]) for token in piece))
            ids, id_ends = self._encode(b"".join(self.contents[token] for token in piece))
            source_tokens += ids
            source_ends += [offset + end for end in id_ends]
            target_ends += [offset + end for end in ends]
            offset += ends[-1] if ends else 0
            if closing is not None:
                offset += 1
                target_ends.append(offset)
                if closing == self.end and source_end is not None:
                    source_tokens.append(source_end)
                    source_ends.append(offset)
        if len(source_tokens) == (self.source_start is not None):
            raise UserError("a block of tokens holds no text that the source could read")
        index = _last_in_time(source_ends, target_ends, _silent(source_tokens, self.source_contents, source_end))
        back = _last_in_time(target_ends, source_ends, _silent(tokens.tolist(), self.contents, self.end))
        return Paired(torch.tensor(source_tokens), index, back)

    def _pieces(self, tokens: list[int]) -> Iterator[tuple[list[int], int | None]]:
        """The pieces of text between special tokens, each with the special token after it (None at the end)."""
        start = 0
        for index, token in enumerate(tokens):
            if self.contents[token] is None:
                yield tokens[start:index], token
                start = index + 1
        if start < len(tokens):
            yield tokens[start:], None

    def _encode(self, content: bytes) -> tuple[list[int], list[int]]:
        """The source's tokens of a piece of text (which may begin or end within a character), and their ends."""
        text, offsets = _as_text(content)
        if not text:
            return [], []
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        encoded = self.source_tokenizer(text, return_offsets_mapping=True, **options)
        ids = encoded["input_ids"]
        contents = [self.source_contents[token] or b"" for token in ids]
        ends, plain = list(accumulate(map(len, contents))), text.encode()
        if b"".join(contents) == b" " + plain:  # the space that SentencePiece puts before a text
            ends = [max(0, end - 1) for end in ends]
        elif b"".join(contents) != plain:
            ends = _ends_by_characters(text, encoded["offset_mapping"])
        return ids, [offsets[end - 1] + 1 if end else 0 for end in ends]


def _silent(tokens: list[int], contents: list[bytes | None], end: int | None) -> list[bool]:
    """Whether each token tells nothing of the text, as a start token does. The end token tells that the text ends."""
    return [contents[token] is None and token != end for token in tokens]


def _last_in_time(ends: list[int], limits: list[int], silent: list[bool]) -> Tensor:
    """For each limit, the index of the last token that ends no later; -1 where there is none, or where it is silent."""
    index = torch.searchsorted(torch.tensor(ends), torch.tensor(limits), right=True) - 1
    return index.masked_fill(torch.tensor(silent)[index.clamp(min=0)], NONE)


def _as_text(content: bytes) -> tuple[str, list[int]]:
    """The whole characters in some bytes, and the offset there of each byte of these characters.

    Where bytes in the middle are no UTF-8, the offset of a character may be given too late, but never too early.
    """
    text = content.decode(errors="ignore")
    offsets, offset = [], len(content)
    for byte in reversed(text.encode()):
        offset = content.rindex(byte, 0, offset)
        offsets.append(offset)
    return text, offsets[::-1]


def _ends_by_characters(text: str, spans: list[tuple[int, int]]) -> list[int]:
    """The ends of tokens in bytes, from the spans of characters that a tokenizer which changes the text reports.

    Some tokenizers leave spaces at the ends of tokens out: what lies between two tokens is counted to the first.
    """
    sizes = [0, *accumulate(len(character.encode()) for character in text)]
    starts = [start for start, _ in spans]
    ends = [max(end, start) for (_, end), start in zip(spans, [*starts[1:], len(text)], strict=True)]
    return list(accumulate((sizes[end] for end in ends), max))
