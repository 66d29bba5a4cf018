"""Byte-level byte pair encoding: no text is unknown, and every text comes back as it was."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from annotated_types import Ge, Le

from data_modules import TOKENIZERS

END_OF_TEXT = "<|endoftext|>"


@TOKENIZERS.register("byte_bpe")
def byte_bpe(texts: Iterable[str], vocab_size: Annotated[int, Ge(257), Le(2**24)] = 2048) -> Any:
    """The 256 bytes, merges of them (Sennrich et al., arXiv 1508.07909), and an end-of-text token.

    Args:
        texts: what the merges are counted on.
        vocab_size: tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=[END_OF_TEXT], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
