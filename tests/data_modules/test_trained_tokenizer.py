import pytest

from data_modules import TOKENIZERS, trained_tokenizer
from data_modules.dataset_settings import DatasetSettings
from data_modules.documents import SPLITS
from data_modules.tokenizer_settings import TokenizerSettings
from data_modules.tokens import token_bytes
from registries.registry import UserError


@pytest.fixture
def train(text_path, tmp_path):
    """The tokenizer of a small text."""
    from data_modules import DATASETS
    from registries.option import base_values

    shared = {key: base_values("dataset")[key] for key in base_values("dataset") if key != "name"}
    dataset = DatasetSettings(name="text", arguments={"path": str(text_path)}, **shared)
    assert set(SPLITS) <= DATASETS.build("text", path=str(text_path)).keys()

    def train(vocab_size=20, name="word"):
        settings = TokenizerSettings(name=name, arguments={"vocab_size": vocab_size})
        return trained_tokenizer.trained_tokenizer(settings, dataset, tmp_path)

    return train


@pytest.mark.parametrize("name", TOKENIZERS.names())
def test_it_is_trained_once(train, name, monkeypatch):
    first = train(270, name)
    monkeypatch.setattr(TOKENIZERS, "build", None)
    second = train(270, name)
    assert first.get_vocab() == second.get_vocab()
    assert first.eos_token_id == second.eos_token_id
    assert token_bytes(first).equal(token_bytes(second))


def test_another_size_is_another_tokenizer(train):
    assert len(train(20)) == 20
    assert len(train(21)) == 21


def test_a_damaged_entry_is_made_anew(train, tmp_path, caplog):
    first = train()
    (file,) = (tmp_path / "tokenizers").glob("*.json")
    file.write_text(file.read_text()[:100])
    assert train().get_vocab() == first.get_vocab()
    assert "damaged" in caplog.text


def test_more_tokens_than_the_text_has(train):
    with pytest.raises(UserError, match=r"tokenizer.vocab_size=100000: .* give only \d+ tokens"):
        train(100_000)


def test_only_training_texts_are_looked_at(train, text_path):
    from data_modules import DATASETS

    splits = DATASETS.build("text", path=str(text_path))
    trained = {word.lower() for document in splits["train"] for word in document.text.split()}
    held_out = {word.lower() for split in ("validation", "test") for d in splits[split] for word in d.text.split()}
    vocabulary = set(train(len(trained) + 4).get_vocab())
    assert held_out - trained
    assert not vocabulary & (held_out - trained)


def test_a_folder_that_cannot_be_written(train, tmp_path):
    (tmp_path / "tokenizers").write_text("a file")
    with pytest.raises(UserError, match="cannot write the tokenizer"):
        train()
