"""The interface of components that train tokenizers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol


class TokenizerTrainer(Protocol):
    """Trains a tokenizer; its other arguments are keys of the config group `tokenizer`."""

    def __call__(self, texts: Iterable[str], vocab_size: int, **options: Any) -> Any:
        """A `PreTrainedTokenizerBase` of `vocab_size` tokens, or of fewer where the texts have no more.

        An end token (`eos_token`) is one of them. The tokens of a word must follow from the word alone.
        """
        ...
