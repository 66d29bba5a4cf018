import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from lightning_modules.attention_host import host
from lightning_modules.preflight import TOLERANCE, PreflightError, in_float32, logits, preflight, probe, require
from lightning_modules.surgery import replace_attention
from registries.architectures import architecture_of
from tests.rules import cases, disturb_cores, language_model

CHECKS = {"causality", "prefix", "padding", "cache"}


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"])
def test_an_untouched_model_passes(family):
    results = preflight(language_model(family))
    assert results.keys() == CHECKS
    require(results)


@pytest.mark.parametrize("case", list(cases()), ids=str)
@pytest.mark.parametrize("family", ["gpt2", "phi", "qwen3"])
def test_every_replacement_passes(family, case):
    model = language_model(family)
    replace_attention(model, case.name, [0, 1], options=case.options)
    require(preflight(disturb_cores(model)))


def test_bf16_passes():
    model = language_model("llama").bfloat16()
    replace_attention(model, "toroidal", [0], options={"depth": 4})
    require(preflight(model))


class Broken(nn.Module):
    """A core that breaks one rule."""

    own_positions = False

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def forward(self, query, key, value, mask, scaling, query_start, key_start):
        queries, keys = query.shape[2], key.shape[2]
        causal = torch.ones(queries, keys, dtype=torch.bool).tril(query_start - key_start)
        if self.rule == "causality":
            causal = torch.ones_like(causal)
        if self.rule == "prefix":
            scaling = scaling * keys / 24
        if self.rule == "padding" and mask is not None:
            mask = causal
        if self.rule == "cache":
            causal = torch.ones(queries, keys, dtype=torch.bool).tril()
        key, value = key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1)
        return scaled_dot_product_attention(
            query, key, value, attn_mask=causal if mask is None else mask, scale=scaling
        )


@pytest.mark.parametrize(
    ("rule", "failed"),
    [
        ("none", set()),
        ("causality", {"causality", "prefix", "padding"}),
        ("prefix", {"prefix", "cache"}),
        ("padding", {"padding"}),
        ("cache", {"cache"}),
    ],
)
def test_a_broken_core_fails(rule, failed):
    model = language_model("llama")
    host(architecture_of("llama").attention_layers(model)[0], Broken(rule))
    results = preflight(model)
    assert {name for name, result in results.items() if not result["passed"]} >= failed
    if failed:
        with pytest.raises(PreflightError, match=rf"breaks \d rule.*{rule}: logits differ by"):
            require(results)
    else:
        require(results)


@pytest.mark.parametrize(("depth", "passes"), [(1, True), (2, False)])
def test_a_claim_to_change_nothing_is_checked(depth, passes):
    model = language_model("llama")
    before = logits(model, probe(model))
    replace_attention(model, "toroidal", [0], options={"depth": depth, "lambda_distance": 0.0})
    results = preflight(model, before)
    assert results.keys() == {*CHECKS, "identity"}
    assert results["identity"]["passed"] == passes


def test_logits_that_are_not_numbers_fail():
    model = language_model("llama")
    nn.init.constant_(model.model.layers[0].self_attn.v_proj.weight, torch.nan)
    with pytest.raises(PreflightError):
        require(preflight(model))


def test_the_probe_is_the_same_for_the_same_seed():
    model = language_model("llama")
    assert probe(model, 3).equal(probe(model, 3))
    assert not probe(model, 3).equal(probe(model, 4))


def test_the_mode_of_the_model_is_left_as_it_was():
    model = language_model("llama").train()
    preflight(model)
    assert model.training


@pytest.mark.parametrize("enough", [True, False])
def test_a_bf16_model_is_checked_in_fp32_where_there_is_memory(enough, monkeypatch):
    """Rounding that many new layers blow up is no broken rule; afterwards the weights are as they were."""
    model = language_model("llama").bfloat16()
    replace_attention(model, "toroidal", [0, 1], options={"depth": 4})
    before = {name: parameter.data for name, parameter in model.named_parameters()}
    memory = type("Memory", (), {"available": 1e12 if enough else 0.0})
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    with in_float32(model):
        assert model.dtype == (torch.float32 if enough else torch.bfloat16)
        results = preflight(model)
        assert results["cache"]["allowed"] == TOLERANCE[model.dtype]
    assert all(parameter.data is before[name] or parameter.data.data_ptr() == before[name].data_ptr()
               for name, parameter in model.named_parameters())  # fmt: skip
    assert model.dtype == torch.bfloat16
    if enough:
        assert max(result["difference"] for result in results.values()) < 1e-5
