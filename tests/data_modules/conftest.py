from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data_modules import build_data_module

WORDS = "The quick brown fox jumps over the lazy dog, and the café was naïve about it all. " * 20


def byte_level(vocab_size: int = 300):
    """A byte-level BPE tokenizer that knows every byte."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


@pytest.fixture(scope="session")
def make_tokenizer():
    return byte_level


@pytest.fixture(scope="session")
def tokenizer():
    return byte_level()


@pytest.fixture
def text_file(tmp_path) -> Path:
    """Two hundred different documents of about 900 characters."""
    file = tmp_path / "text.txt"
    paragraphs = [f"Paragraph {index}. " + " ".join(f"word{index * k}" for k in range(100)) for index in range(200)]
    file.write_text("\n\n".join(paragraphs), encoding="utf-8")
    return file


@pytest.fixture
def build(tokenizer, tmp_path):
    """A data module of a dataset group given as keyword arguments."""

    def build(name: str, seed: int = 1, **keys):
        cfg = {"dataset": {"name": name, **keys}, "seed": seed, "cache_dir": str(tmp_path / "cache")}
        return build_data_module(cfg, tokenizer)

    return build
