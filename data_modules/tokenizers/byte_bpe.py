"""Byte-level byte pair encoding: no text is unknown, and every text comes back as it was."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from annotated_types import Ge, Le

from data_modules import TOKENIZERS
from data_modules.tokenizers.tokenizer_trainer import special_token_errors

END_OF_TEXT = "<|endoftext|>"


def _check(special_tokens: list[str] | None, vocab_size: int) -> list[str]:
    errors, least = special_token_errors(special_tokens, [END_OF_TEXT]), 257 + len(special_tokens or [])
    if not errors and vocab_size < least:
        errors.append(
            f"tokenizer.vocab_size={vocab_size} has no room for bytes and special tokens: set it to at least {least}"
        )
    return errors


@TOKENIZERS.register("byte_bpe", check=_check)
def byte_bpe(
    texts: Iterable[str],
    vocab_size: Annotated[int, Ge(257), Le(2**24)] = 2048,
    special_tokens: list[str] | None = None,
) -> Any:
    """The 256 bytes, merges of them (Sennrich et al., arXiv 1508.07909), and an end-of-text token.

    Args:
        texts: what the merges are counted on.
        vocab_size: tokens.
        special_tokens: texts that are one token each, such as the markers of who speaks.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [END_OF_TEXT, *(special_tokens or [])]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
