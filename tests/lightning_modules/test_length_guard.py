import pytest
import torch

from lightning_modules.length_guard import guard_length, length_limit
from registries import UserError
from tests.rules import language_model, limited_model, logits, tokens

LIMITED = ["gpt2", "llama, dynamic"]


@pytest.mark.parametrize("name", LIMITED)
def test_a_text_that_is_longer_than_the_model_reads_is_an_error(name):
    model = guard_length(limited_model(name, 16))
    text = tokens(model, 1, 17)
    assert logits(model, text[:, :16]).isfinite().all()
    for body in (model, model.base_model):
        with pytest.raises(UserError, match="a text of 17 tokens is longer than the 16 "):
            body(text)
    with pytest.raises(UserError, match="a text of 17 tokens"):
        model(inputs_embeds=model.get_input_embeddings()(text))
    cache = model(text[:, :16], use_cache=True).past_key_values
    with pytest.raises(UserError, match="a text of 17 tokens"):
        model(text[:, 16:], past_key_values=cache, use_cache=True)


@pytest.mark.parametrize("name", LIMITED)
def test_examples_in_a_block_count_their_own_positions(name):
    model, positions = guard_length(limited_model(name, 16)), torch.arange(24)[None] % 12
    assert logits(model, tokens(model, 1, 24), position_ids=positions).isfinite().all()


def test_no_text_changes_how_the_next_one_is_read():
    """Dynamic rotary codes are those of the longest text until then."""
    model, text = limited_model("llama, dynamic", 16), tokens(language_model("llama"), 1, 40)
    before = logits(guard_length(model), text[:, :12])
    with pytest.raises(UserError, match="rope_type dynamic"):
        logits(model, text)
    assert logits(model, text[:, :12]).equal(before)


@pytest.mark.parametrize("family", ["gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"])
def test_other_rotary_codes_have_no_limit(family):
    assert length_limit(language_model(family, max_positions=16)) is None


def test_a_family_that_is_not_known_has_none():
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(hidden_size=8, num_hidden_layers=1, ffn_dim=8, num_attention_heads=2, word_embed_proj_dim=8)
    assert length_limit(guard_length(OPTForCausalLM(config))) is None
