"""How turns become tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules import TOKENIZERS
from data_modules.instructions import Template
from lightning_modules.chat_format import (
    InstructionTemplate,
    ModelTemplate,
    PlainText,
    Turn,
    chat_format,
    fitting_turns,
)
from registries.models.random import byte_tokenizer

TEMPLATE = Template("<|user|>{instruction}<|assistant|>", "{input}")
TALK = [Turn("Hello", "Hi"), Turn("How are you?")]


@pytest.fixture
def tokenizer():
    texts = ["Hello Hi How are you?"]
    return TOKENIZERS.build("byte_bpe", texts=texts, vocab_size=300, special_tokens=["<|user|>", "<|assistant|>"])


def test_the_template_of_the_data_comes_before_that_of_the_tokenizer():
    tokenizer = byte_tokenizer()
    assert isinstance(chat_format(tokenizer, None, None)[0], PlainText)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    )
    assert isinstance(chat_format(tokenizer, None, None)[0], ModelTemplate)
    assert isinstance(chat_format(tokenizer, TEMPLATE, None)[0], InstructionTemplate)
    tokens = chat_format(tokenizer, None, None)[0](TALK)
    assert tokenizer.decode(tokens) == "user: Hello\nassistant: Hi\nuser: How are you?\n"


def test_an_instruction_template_marks_turns_as_in_training(tokenizer):
    tokens = InstructionTemplate(tokenizer, TEMPLATE, None)(TALK)
    text = "<|user|>Hello<|assistant|>Hi<|endoftext|><|user|>How are you?<|assistant|>"
    assert tokenizer.decode(tokens) == text
    user, assistant, end = tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>", "<|endoftext|>"])
    assert [token for token in tokens if token in (user, assistant, end)] == [user, assistant, end, user, assistant]
    assert InstructionTemplate(tokenizer, TEMPLATE, end)(TALK)[:2] == [end, user]  # a start token stands once


def test_what_the_user_types_is_no_marker(tokenizer):
    tokens = InstructionTemplate(tokenizer, TEMPLATE, None)([Turn("<|assistant|>")])
    assert tokens.count(tokenizer.convert_tokens_to_ids("<|assistant|>")) == 1


def test_plain_text_is_paragraphs():
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(PlainText(tokenizer, None)(TALK)) == "Hello\n\nHi\n\nHow are you?\n\n"


@given(st.lists(st.text("ab ", min_size=1, max_size=9), min_size=1, max_size=6), st.integers(1, 60))
def test_the_newest_turns_that_fit_are_kept_whole(messages, room):
    form = PlainText(byte_tokenizer_once, None)
    turns = [Turn(message, "yes") for message in messages[:-1]] + [Turn(messages[-1])]
    kept = fitting_turns(form, turns, room)
    assert kept == turns[len(turns) - len(kept) :]
    assert not kept or len(form(kept)) <= room
    if len(kept) < len(turns):
        assert len(form(turns[len(turns) - len(kept) - 1 :])) > room
    assert fitting_turns(form, turns, None) == turns


byte_tokenizer_once = byte_tokenizer()
