import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_modules import TOKENIZERS
from data_modules.encoding import encode_filled
from data_modules.tokens import token_bytes, unknown_token, vocabulary_size

TEXTS = ["The cat sat. The cat ran.", "A dog sat", "the <unk> zebra"]


@pytest.mark.parametrize("name", TOKENIZERS.names())
def test_it_has_an_end_token_and_no_more_tokens_than_asked_for(name):
    tokenizer = TOKENIZERS.build(name, texts=TEXTS, vocab_size=260)
    assert vocabulary_size(tokenizer) <= 260
    assert tokenizer.eos_token_id is not None
    assert TOKENIZERS.build(name, texts=TEXTS, vocab_size=260).get_vocab() == tokenizer.get_vocab()


@settings(max_examples=30, deadline=None)
@given(text=st.text())
def test_every_text_comes_back_from_byte_bpe(text):
    tokenizer = TOKENIZERS.build("byte_bpe", texts=TEXTS, vocab_size=270)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert unknown_token(tokenizer) is None


def test_words_are_the_commonest_in_lower_case():
    tokenizer = TOKENIZERS.build("word", texts=TEXTS, vocab_size=8)
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    assert tokenizer.convert_ids_to_tokens(range(8)) == [*special, "the", "cat", "a", "dog"]  # equal counts: a-z
    assert tokenizer.convert_ids_to_tokens(tokenizer("THE  cat\nflew")["input_ids"]) == ["the", "cat", "<unk>"]


def test_bytes_of_words_count_the_space_and_of_the_unknown_word_the_average():
    tokenizer = TOKENIZERS.build("word", texts=TEXTS, vocab_size=6)  # the, cat; unknown: sat. ran. a dog sat zebra
    assert tokenizer.convert_ids_to_tokens([4, 5]) == ["the", "cat"]
    sizes = token_bytes(tokenizer)
    average = sum(map(len, ["sat.", "ran.", "a", "dog", "sat", "zebra"])) / 6
    assert sizes.tolist() == pytest.approx([0, average + 1, 0, 0, 4, 4])
    assert unknown_token(tokenizer) == 1


def test_settings_survive_a_folder(tmp_path):
    from transformers import PreTrainedTokenizerFast

    tokenizer = TOKENIZERS.build("word", texts=TEXTS, vocab_size=6)
    tokenizer.save_pretrained(tmp_path)
    assert token_bytes(PreTrainedTokenizerFast.from_pretrained(tmp_path)).equal(token_bytes(tokenizer))


@pytest.mark.parametrize("name", TOKENIZERS.names())
def test_special_tokens_are_tokens_in_templates_and_plain_text_in_fields(name, tmp_path):
    from transformers import PreTrainedTokenizerFast

    markers = ["<|user|>", "<|assistant|>"]
    tokenizer = TOKENIZERS.build(name, texts=TEXTS, vocab_size=262, special_tokens=markers)
    tokenizer.save_pretrained(tmp_path)
    for copy in (tokenizer, PreTrainedTokenizerFast.from_pretrained(tmp_path)):
        ids = copy.convert_tokens_to_ids(markers)
        (prompt,) = encode_filled(copy, [("<|user|>", "a dog", "<|assistant|>", "")], None)
        assert [prompt[0], prompt[-1]] == ids and len(prompt) > 2
        (plain,) = encode_filled(copy, [("<|user|>", "<|assistant|>", "", "")], None)
        assert plain.count(ids[1]) == 0
        assert copy.decode(prompt, skip_special_tokens=True).strip() == "a dog"
        assert vocabulary_size(copy) <= 262


@pytest.mark.parametrize("name", TOKENIZERS.names())
@pytest.mark.parametrize(
    ("tokens", "message"),
    [([""], "empty"), (["<a>", "<a>"], "already"), (["<a>"] + [f"<{i}>" for i in range(9)], "room")],
)
def test_special_tokens_that_cannot_be_are_told(name, tokens, message):
    size = {"word": 12, "byte_bpe": 260}[name]
    (error,) = TOKENIZERS.check(name, {"vocab_size": size, "special_tokens": tokens}, ["texts"])
    assert message in error
