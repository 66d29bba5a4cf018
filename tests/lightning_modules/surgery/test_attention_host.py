import pytest
import torch
from torch import nn

from lightning_modules.surgery.attention_host import host
from lightning_modules.surgery.replaced_attention import replace_attention
from lightning_modules.surgery.trained_parameters import thaw
from registries.architectures import architecture_of
from tests.rules import MODELS_UNDER_TEST, difference, language_model, logits, mask_of, tokens


class Recorder(nn.Module):
    """A core that notes what it is called with, and attends to nothing."""

    keeps_function = False

    def __init__(self, own_positions=False):
        super().__init__()
        self.own_positions, self.calls = own_positions, []

    def forward(self, query, key, value, mask, scaling, query_start, key_start):
        self.calls.append((query, key, value, mask, scaling, query_start, key_start))
        return torch.zeros_like(query)


@pytest.fixture
def hosted():
    """A model whose layer 0 hosts a Recorder, and that Recorder."""

    def make(family="llama", **options):
        model, core = language_model(family), Recorder(**options)
        host(architecture_of(model.config.model_type).attention_layers(model)[0], core)
        return model, core

    return make


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"])
def test_what_a_core_is_called_with(family, hosted):
    model, core = hosted(family)
    logits(model, tokens(model, 3, 10))
    ((query, key, value, mask, scaling, query_start, key_start),) = core.calls
    heads = 4 if family in ("gpt2", "gpt_neox") else 2
    assert query.shape == (3, 4, 10, 16)
    assert key.shape == value.shape == (3, heads, 10, 16)
    assert mask is None
    assert (query_start, key_start) == (0, 0)
    expected = model.config.query_pre_attn_scalar**-0.5 if family == "gemma3" else 0.25
    assert scaling == expected


@pytest.mark.parametrize("name", MODELS_UNDER_TEST)
def test_positions_count_the_tokens_that_the_cache_has_seen(name, hosted):
    model, core = hosted(name)
    text, cache = tokens(model, 1, 40), None
    for start, stop in ((0, 20), (20, 21), (21, 40)):
        cache = model(input_ids=text[:, start:stop], past_key_values=cache, use_cache=True).past_key_values
    window = 12 if "sliding" in name else None
    for (query, key, *_, query_start, key_start), (start, stop) in zip(
        core.calls, ((0, 20), (20, 21), (21, 40)), strict=True
    ):
        assert (query_start, query.shape[2]) == (start, stop - start)
        assert key_start == (max(0, start - window + 1) if window else 0)
        assert key_start + key.shape[2] == stop


@pytest.mark.parametrize("form", ["2-D", "4-D boolean", "4-D additive"])
def test_masks_arrive_boolean(form, hosted):
    model, core = hosted()
    logits(model, tokens(model, 2, 8), attention_mask=mask_of(form, 2, 8, padding=3))
    mask = core.calls[0][3]
    assert mask.dtype == torch.bool
    allowed = mask_of("4-D boolean", 2, 8, padding=3)
    assert mask.shape == allowed.shape
    assert mask[:, :, 3:].equal(allowed[:, :, 3:])


@pytest.mark.parametrize("low", [-1e4, -1e9, -torch.inf, torch.finfo(torch.float32).min])
def test_whatever_low_number_hides(low, hosted):
    model, core = hosted()
    allowed = mask_of("4-D boolean", 2, 8, padding=3)
    additive = torch.zeros(allowed.shape).masked_fill(~allowed, low)
    logits(model, tokens(model, 2, 8), attention_mask=additive)
    assert core.calls[0][3].equal(allowed)


@pytest.mark.parametrize("batch", [1, 8])
def test_a_2_d_mask_is_never_taken_for_a_block(batch, hosted):
    """Not even with as many rows as positions."""
    model, core = hosted()
    logits(model, tokens(model, batch, 8), attention_mask=mask_of("2-D", batch, 8, padding=2))
    assert core.calls[0][3][:, :, 2:].equal(mask_of("4-D boolean", batch, 8, padding=2)[:, :, 2:])


def test_other_masks_are_refused(hosted):
    model, _ = hosted()
    layer, hidden = model.model.layers[0].self_attn, torch.zeros(2, 8, 64)
    codes = torch.ones(1, 8, 16), torch.zeros(1, 8, 16)
    with pytest.raises(ValueError, match=r"must be \(batch, 1, queries, keys\) here, not \(2, 8\)"):
        layer(hidden_states=hidden, position_embeddings=codes, attention_mask=torch.ones(2, 8))
    with pytest.raises(ValueError, match="must be boolean, or additive and floating, not torch.int64"):
        layer(hidden_states=hidden, position_embeddings=codes, attention_mask=torch.ones(2, 1, 8, 8, dtype=torch.long))


@pytest.mark.parametrize("family", ["gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"])
def test_a_core_with_its_own_positions_gets_unrotated_queries_and_keys(family, hosted):
    """The same token gives the same query and key at every position; with the model's codes it does not."""
    for own_positions in (True, False):
        model, core = hosted(family, own_positions=own_positions)
        logits(model, torch.full((1, 6), 7))
        query, key, *_ = core.calls[0]
        same = query.allclose(query[:, :, :1], atol=1e-5) and key.allclose(key[:, :, :1], atol=1e-5)
        assert same == own_positions


def test_other_layers_and_models_are_not_touched():
    model, other = language_model("llama"), language_model("llama")
    before = logits(other, tokens(other, 1, 20))
    replace_attention(model, "toroidal", [1], options={"depth": 4})
    assert logits(other, tokens(other, 1, 20)).equal(before)
    implementations = [layer.self_attn.config._attn_implementation for layer in model.model.layers]
    assert implementations == ["sdpa", "graftlab_core"]
    assert model.config._attn_implementation == "sdpa"
    assert not hasattr(model.model.layers[0].self_attn, "core")


def test_the_parameters_of_a_core_lie_under_its_layer():
    model = language_model("llama")
    replace_attention(model, "toroidal", [1], options={"temperature": True})
    names = {name for name, _ in model.named_parameters() if ".core." in name}
    prefix = "model.layers.1.self_attn.core"
    assert names == {f"{prefix}.fusion.left", f"{prefix}.fusion.right", f"{prefix}.log_temperature"}


@pytest.mark.parametrize("position", ["model", "toroidal"])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"])
def test_a_layer_in_fp32_works_in_a_bf16_model(family, position):
    model = language_model(family).bfloat16()
    replace_attention(model, "toroidal", [1], options={"depth": 2, "position": position})
    text = tokens(model, 2, 12)
    before = logits(model, text)
    layer = architecture_of(model.config.model_type).attention_layers(model)[1]
    thaw(model, dict(layer.named_parameters()))
    after = model(input_ids=text).logits
    assert after.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float32}
    assert difference(after.float(), before.float()) < 0.05
    after.float().square().mean().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in layer.parameters())
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if not parameter.requires_grad)
    cached = model.generate(input_ids=text, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert cached.shape == (2, 15)
