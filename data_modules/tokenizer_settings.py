"""The group `tokenizer`: the model's own, or one that is trained on the training split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from registries.option import Option

OWN = "model"  # the option that takes the model's own tokenizer


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings(Option):
    """Settings of the group `tokenizer`, whose options share no keys."""

    base: ClassVar = "tokenizer"

    @property
    def num_tokens(self) -> int | None:
        """The tokens of a tokenizer that is trained; None for the model's own."""
        return None if self.name == OWN else self.arguments["vocab_size"]
