import pytest
import torch

from lightning_modules.samples import continue_texts
from lightning_modules.surgery import replace_attention
from registries.models.random import byte_tokenizer
from tests.rules import language_model

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
