import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from lightning_modules.preflight import (
    TOLERANCE,
    PreflightError,
    check,
    exact_dtypes,
    exact_logits,
    in_dtype,
    logits,
    preflight,
    probe,
    require,
    require_own_logits,
)
from lightning_modules.surgery.attention_host import host
from lightning_modules.surgery.replaced_attention import replace_attention
from registries import UserError
from registries.architectures import ARCHITECTURES, Architecture, architecture_of
from tests.rules import cases, disturb_cores, language_model, limited_model

CHECKS = {"causality", "prefix", "padding", "cache"}


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"])
def test_an_untouched_model_passes(family):
    results = preflight(language_model(family))
    assert results.keys() == CHECKS
    require(results)


@pytest.mark.each_value
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
    """A core that breaks one rule, or none but computes with much rounding."""

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
        if self.rule == "rounding":
            value = value + 1e3 * keys - 1e3 * keys
        key, value = key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1)
        return scaled_dot_product_attention(
            query, key, value, attn_mask=causal if mask is None else mask, scale=scaling
        )


def broken_model(rule):
    model = language_model("llama")
    host(architecture_of("llama").attention_layers(model)[0], Broken(rule))
    return model


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
    results = preflight(broken_model(rule))
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


@pytest.fixture
def memory(monkeypatch):
    """Sets the memory that the machine says it has left."""

    def set_available(available):
        memory = type("Memory", (), {"available": available})
        monkeypatch.setattr("psutil.virtual_memory", lambda: memory)

    return set_available


@pytest.mark.parametrize("enough", [True, False])
def test_a_bf16_model_is_checked_in_fp32_where_there_is_memory(enough, memory):
    """Rounding that many new layers blow up is no broken rule; afterwards the weights are as they were."""
    model = language_model("llama").bfloat16()
    replace_attention(model, "toroidal", [0, 1], options={"depth": 4})
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    memory(1e12 if enough else 0.0)
    results = check(model)
    assert results["cache"]["allowed"] == TOLERANCE[torch.float32 if enough else torch.bfloat16]
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == before
    assert model.dtype == torch.bfloat16
    if enough:
        assert max(result["difference"] for result in results.values()) < 1e-5


def test_the_dtypes_that_fit(memory):
    model = language_model("llama")
    size = sum(parameter.numel() for parameter in model.parameters())
    for available, dtypes, own in [
        (1.4 * 8 * size, [torch.float32], torch.float32),
        (1.6 * 8 * size, [torch.float32, torch.float64], torch.float32),
        (1.4 * 4 * size, [torch.bfloat16], torch.bfloat16),
        (1.6 * 4 * size, [torch.float32], torch.bfloat16),
    ]:
        memory(available)
        assert exact_dtypes(model.to(own)) == dtypes


def test_rounding_is_told_from_a_broken_rule_in_fp64(memory):
    model = broken_model("rounding")
    require(check(model))
    assert model.dtype == torch.float32
    memory(1.0)  # for a copy in fp64 there is none
    with pytest.raises(PreflightError, match="prefix: logits differ by"):
        require(check(model))


@pytest.mark.parametrize("rule", ["causality", "prefix", "padding", "cache"])
def test_a_broken_rule_fails_in_every_dtype(rule):
    with pytest.raises(PreflightError, match=f"{rule}: logits differ by"):
        require(check(broken_model(rule)))


@pytest.mark.parametrize(("depth", "passes"), [(1, True), (2, False)])
def test_a_claim_is_checked_against_the_model_before(depth, passes):
    model = language_model("llama").bfloat16()
    before = exact_logits(model)
    replace_attention(model, "toroidal", [0], options={"depth": depth, "lambda_distance": 0.0})
    assert check(model, before)["identity"]["passed"] == passes


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_every_replacement_can_be_checked_in_fp64(case):
    model = language_model("qwen3")
    replace_attention(model, case.name, [0, 1], options=case.options)
    with in_dtype(disturb_cores(model), torch.float64):
        results = preflight(model)
    require(results)
    assert max(result["difference"] for result in results.values()) < 1e-5


def test_a_model_that_reads_only_short_texts_is_checked_on_them():
    results = preflight(limited_model("gpt2", 10))
    assert results.keys() == CHECKS
    require(results)


def test_a_failed_check_is_told_as_what_users_can_mend():
    with pytest.raises(UserError, match="preflight=false"):
        require(preflight(broken_model("causality")))


# The objectives' own logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"])
def test_training_and_scoring_have_the_same_logits(family, dtype):
    require_own_logits(language_model(family).to(dtype))


def test_capped_logits_are_those_of_the_model():
    model = language_model("gemma3")
    model.config.final_logit_softcapping = 0.5
    require_own_logits(model)


@pytest.fixture
def scaled_model():
    """A model of a family whose logits are a tenth of what its output head gives."""
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return GraniteForCausalLM(GraniteConfig(vocab_size=64, logits_scaling=10.0, **small)).eval()


def register(monkeypatch, **options):
    """The family of `scaled_model`, for this test."""
    llama = ARCHITECTURES.get("llama")
    monkeypatch.setattr(ARCHITECTURES, "_components", dict(ARCHITECTURES._components))
    ARCHITECTURES.register("granite")(Architecture(llama.blocks, llama.attention, llama.roles, **options))


def test_a_family_that_scales_its_logits_is_told_before_it_trains(scaled_model, monkeypatch):
    register(monkeypatch)
    with pytest.raises(UserError, match="the logits of this 'granite' model, .* differs .* by 9 of the largest"):
        require_own_logits(scaled_model)


def test_a_family_can_say_how_it_scales_its_logits(scaled_model, monkeypatch):
    register(monkeypatch, logits=lambda output, config: output / config.logits_scaling)
    require_own_logits(scaled_model)
    with pytest.raises(UserError, match="the loss of this 'granite' model"):
        scaled_model.loss_function = lambda logits, labels, **_: logits.sum() * 0 + 7.0
        require_own_logits(scaled_model)


def test_what_is_not_a_number_is_no_difference():
    """It is an outcome of the run."""
    model = language_model("llama")
    nn.init.constant_(model.model.norm.weight, torch.nan)
    require_own_logits(model)
