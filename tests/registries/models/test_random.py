import re
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from registries import MODELS, UserError
from registries.model_shape import shape_of
from registries.models.random import Family, byte_tokenizer

each_family = pytest.mark.parametrize("family", get_args(Family))
TOKENIZER = byte_tokenizer()


def random(**options):
    return MODELS.build("random", **options)


@each_family
def test_every_family_has_the_dimensions_that_were_asked_for(family):
    source = random(family=family, num_layers=3, hidden_size=48, num_heads=6, vocab_size=321, max_positions=77)
    model = source.model(torch.float32)
    shape = shape_of(model.config)
    assert (shape.num_layers, shape.hidden_size, shape.num_heads, shape.head_width) == (3, 48, 6, 8)
    assert (shape.vocab_size, shape.max_positions) == (321, 77)
    assert not model.training
    assert model(input_ids=torch.tensor([[1, 320]])).logits.shape == (1, 2, 321)
    assert model.config.eos_token_id == source.tokenizer().eos_token_id


@pytest.mark.parametrize("family", ["phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_key_and_value_heads_are_grouped(family, kv_heads):
    attention = random(family=family, num_kv_heads=kv_heads).model(torch.float32).model.layers[0].self_attn
    assert attention.k_proj.out_features == attention.v_proj.out_features == kv_heads * 16


def test_the_dtype_is_the_one_asked_for():
    model = random().model(torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_weights_follow_the_global_seed():
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(random().model(torch.float32).model.layers[0].mlp.up_proj.weight)
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, r"num_heads=5 does not divide model.hidden_size=64. Allowed: \[1, 2, 4, 8, 16, 32, 64\]"),
        ({"num_heads": 32}, "hidden_size / num_heads = 2 must be a multiple of 4"),
        ({"num_kv_heads": 3}, "num_kv_heads=3 does not divide model.num_heads=4"),
        ({"family": "gpt2", "num_kv_heads": 2}, "num_kv_heads=2: gpt2 cannot group heads. Allowed: null, 4"),
        ({"vocab_size": 256}, "vocab_size=256 is too small for the byte tokenizer. Allowed: 257 or more"),
        ({"tokenizer": "/nowhere/at/all"}, "tokenizer=/nowhere/at/all: there is no such folder"),
        ({"family": "bert"}, "family='bert'"),
        ({"num_layers": 0}, "num_layers=0"),
    ],
)
def test_what_no_model_can_have(options, message):
    (found,) = MODELS.check("random", options)
    assert re.search(message, found)


def test_a_tokenizer_folder(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    assert MODELS.check("random", {"tokenizer": str(tmp_path), "vocab_size": 257}) == []
    assert random(tokenizer=str(tmp_path)).tokenizer()("abc")["input_ids"] == TOKENIZER("abc")["input_ids"]

    with pytest.raises(
        UserError, match=f"vocab_size=100 is too small for the 257 tokens of model.tokenizer={tmp_path}"
    ):
        random(tokenizer=str(tmp_path), vocab_size=100).model(torch.float32)


@settings(max_examples=200, deadline=None)
@given(st.text().filter(lambda text: TOKENIZER.eos_token not in text))
def test_bytes_come_back(text):
    ids = TOKENIZER(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert TOKENIZER.decode(ids) == text


def test_the_end_of_a_text_is_the_only_special_token():
    assert len(TOKENIZER) == 257
    assert TOKENIZER.eos_token_id == TOKENIZER.pad_token_id == 256
    assert TOKENIZER("a<|endoftext|>b")["input_ids"][1] == 256
    assert len(TOKENIZER("日本語 🙂\n\t")["input_ids"]) == len("日本語 🙂\n\t".encode())


@each_family
@pytest.mark.parametrize("kv_heads", [None, 2])
def test_a_number_of_parameters_solves_the_widths(family, kv_heads):
    if family in ("gpt2", "gpt_neox"):
        kv_heads = None
    model = random(family=family, num_kv_heads=kv_heads, num_layers=3, parameters="0.9M").model(torch.float32)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(900_000, rel=0.01)


def test_a_number_of_parameters_that_no_width_reaches():
    with pytest.raises(UserError, match=r"model.parameters=5K: .* the nearest is \d+,\d+"):
        random(parameters="5K")
