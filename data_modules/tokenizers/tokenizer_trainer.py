"""The interface of components that train tokenizers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol


class TokenizerTrainer(Protocol):
    """Trains a tokenizer; its other arguments are keys of the config group `tokenizer`."""

    def __call__(self, texts: Iterable[str], vocab_size: int, **options: Any) -> Any:
        """A `PreTrainedTokenizerBase` of `vocab_size` tokens, or of fewer where the texts have no more.

        An end token (`eos_token`) is one of them. The tokens of a word must follow from the word alone.
        """
        ...


def special_token_errors(special_tokens: Sequence[str] | None, own: Sequence[str]) -> list[str]:
    """What is wrong with the special tokens that a config asks for, beside the tokenizer's own."""
    errors, seen = [], set(own)
    for token in special_tokens or ():
        if not token.strip() or token != token.strip():
            errors.append(f"tokenizer.special_tokens: {token!r} is empty or has white space around it")
        elif token in seen:
            errors.append(f"tokenizer.special_tokens: {token!r} is a special token already")
        seen.add(token)
    return errors
