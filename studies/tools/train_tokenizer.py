"""Train a byte-level BPE tokenizer on the training documents of a text dataset.

python -m studies.tools.train_tokenizer pydoc 2048 outputs/tiny_phi_tokenizer
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A `PreTrainedTokenizerFast` of `vocab_size` tokens: the 256 bytes, merges of them, and an end-of-text token."""
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


if __name__ == "__main__":
    import argparse

    from data_modules import DATASETS

    parser = argparse.ArgumentParser(prog="python -m studies.tools.train_tokenizer")
    parser.add_argument("dataset", choices=DATASETS.names())
    parser.add_argument("vocab_size", type=int)
    parser.add_argument("folder")
    arguments = parser.parse_args()
    documents = DATASETS.build(arguments.dataset)["train"]
    train_tokenizer((document.text for document in documents), arguments.vocab_size).save_pretrained(arguments.folder)
    print(f"{arguments.vocab_size} tokens, trained on {len(documents)} documents: {arguments.folder}")
