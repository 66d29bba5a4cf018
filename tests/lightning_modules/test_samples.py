import pytest
import torch

from lightning_modules.length_guard import guard_length
from lightning_modules.samples import continue_texts
from lightning_modules.surgery.replaced_attention import replace_attention
from registries import UserError
from registries.models.random import byte_tokenizer
from tests.rules import language_model, limited_model

PROMPTS = ["Hi", "A much longer prompt than the others", "é", "In between"]


@pytest.mark.parametrize("position", ["model", "toroidal"])
@pytest.mark.parametrize("family", ["gpt2", "phi", "llama", "gemma3, sliding"])
def test_a_batch_of_prompts_gives_what_each_gives_alone(family, position):
    model, tokenizer = language_model(family), byte_tokenizer()
    replace_attention(model, "toroidal", [0, 1], options={"depth": 2, "period": 16, "position": position})
    together = continue_texts(model, tokenizer, PROMPTS, max_new_tokens=20)
    assert together == [continue_texts(model, tokenizer, [prompt], max_new_tokens=20)[0] for prompt in PROMPTS]
    assert len(set(together)) == len(PROMPTS)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_it_is_the_most_likely_token_each_time(family):
    """Without a cache, the whole text again for every token."""
    model, tokenizer = language_model(family), byte_tokenizer()
    replace_attention(model, "toroidal", [0], options={"depth": 4, "period": 16})
    ids = tokenizer("Some text")["input_ids"]
    for _ in range(12):
        with torch.no_grad():
            ids = [*ids, model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()]
    (text,) = continue_texts(model, tokenizer, ["Some text"], max_new_tokens=12)
    assert text == tokenizer.decode(ids[-12:], skip_special_tokens=True)


def test_an_empty_prompt_begins_a_text():
    model, tokenizer = language_model("llama"), byte_tokenizer()
    empty, other = continue_texts(model, tokenizer, ["", "other"], max_new_tokens=8)
    assert empty == continue_texts(model, tokenizer, ["<|endoftext|>"], max_new_tokens=8)[0]
    assert other == continue_texts(model, tokenizer, ["other"], max_new_tokens=8)[0]


def test_the_mode_of_the_model_is_left_as_it_was():
    model = language_model("llama").train()
    continue_texts(model, byte_tokenizer(), ["a"], max_new_tokens=2)
    assert model.training


def test_what_the_model_says_about_decoding_is_not_followed():
    from transformers import GenerationConfig

    model, tokenizer = language_model("llama"), byte_tokenizer()
    expected = continue_texts(model, tokenizer, PROMPTS, max_new_tokens=20)
    model.generation_config = GenerationConfig(
        repetition_penalty=3.0, num_beams=3, no_repeat_ngram_size=1, max_length=3, suppress_tokens=[1], do_sample=True
    )
    assert continue_texts(model, tokenizer, PROMPTS, max_new_tokens=20) == expected


@pytest.fixture
def tokenizer_of_numbers():
    """A tokenizer that hands the tokens over as they are: not every byte is a text."""
    tokenizer = byte_tokenizer()
    tokenizer.decode = lambda tokens, **_: list(tokens)
    return tokenizer


def test_a_text_ends_with_the_end_token(tokenizer_of_numbers):
    model = language_model("llama")
    whole = continue_texts(model, tokenizer_of_numbers, ["a", "b"], max_new_tokens=20)
    end = next(token for token in whole[0][3:] if token < 256)
    tokenizer_of_numbers.eos_token_id = end
    cut = continue_texts(model, tokenizer_of_numbers, ["a", "b"], max_new_tokens=20)
    assert cut == [tokens[: tokens.index(end) + 1] if end in tokens else tokens for tokens in whole]


@pytest.mark.parametrize("family", ["gpt2", "llama, dynamic"])
def test_a_text_ends_where_the_positions_run_out(family, tokenizer_of_numbers):
    """Each row where its own do; what it wrote before is what it writes without a cache."""
    model = guard_length(limited_model(family, 12))
    prompts = ["Hi", "elevencharc", "twelve chars"]
    written = continue_texts(model, tokenizer_of_numbers, prompts, max_new_tokens=20)
    assert [len(tokens) for tokens in written] == [11, 2, 1]
    with torch.no_grad():
        for prompt, tokens in zip(prompts, written, strict=True):
            whole = torch.tensor([[*tokenizer_of_numbers(prompt)["input_ids"], *tokens[:-1]]])
            assert model(input_ids=whole).logits[0, -len(tokens) :].argmax(-1).tolist() == tokens


def test_a_prompt_that_cannot_be_read_is_told():
    tokenizer = byte_tokenizer()
    with pytest.raises(UserError, match="a prompt has 13 tokens, but this model reads at most 12"):
        continue_texts(limited_model("gpt2", 12), tokenizer, ["Hi", "thirteen char"], max_new_tokens=3)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="a prompt is empty, and this tokenizer has no start or end token"):
        continue_texts(language_model("llama"), tokenizer, ["Hi", ""], max_new_tokens=3)
