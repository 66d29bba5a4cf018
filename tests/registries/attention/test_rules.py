"""Every registered replacement keeps the rules on every model family. A new component is tested by registering it."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from lightning_modules.surgery.attention_host import host
from lightning_modules.surgery.replaced_attention import replace_attention
from registries import ATTENTION
from registries.architectures import AttentionShape, architecture_of
from tests import rules
from tests.rules import ALLOWED, MASK_FORMS, MODELS_UNDER_TEST

CASES = list(rules.cases())
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_model = pytest.mark.parametrize("name", MODELS_UNDER_TEST)


@pytest.mark.each_value
@each_model
@each_case
def test_a_token_changes_nothing_before_it(name, case):
    model = rules.operated_model(name, case)
    for form in MASK_FORMS:
        before, after = rules.future_influence(model, form)
        assert before <= ALLOWED, form
        assert after > 100 * ALLOWED, form


@pytest.mark.each_value
@each_model
@each_case
def test_padding_changes_no_real_token(name, case):
    assert rules.padding_influence(rules.operated_model(name, case)) <= ALLOWED


@pytest.mark.each_value
@each_model
@each_case
def test_the_beginning_of_a_text_does_not_depend_on_its_length(name, case):
    assert rules.prefix_difference(rules.operated_model(name, case)) <= ALLOWED


@pytest.mark.each_value
@each_model
@each_case
def test_decoding_from_a_cache_equals_the_full_pass(name, case):
    model = rules.operated_model(name, case)
    assert rules.cache_difference(model) <= ALLOWED
    assert rules.cache_difference(model, padding=4) <= ALLOWED
    assert rules.cache_difference(model, static=True) <= ALLOWED


SHAPE = AttentionShape(num_heads=4, num_kv_heads=2, head_width=16, rotary_width=16)
CLAIMS = [case for case in CASES if ATTENTION.build(case.name, shape=SHAPE, **case.options).keeps_function]


@pytest.mark.each_value
@each_model
@pytest.mark.parametrize("case", CLAIMS, ids=str)
def test_what_claims_to_change_nothing_changes_nothing(name, case):
    model = rules.language_model(name)
    text = rules.tokens(model, 2, rules.LENGTH)
    mask = rules.mask_of("2-D", 2, rules.LENGTH, padding=5)
    before = [rules.logits(model, text), rules.logits(model, text, attention_mask=mask)[:, 5:]]
    surgery = replace_attention(model, case.name, [0, 1], options=case.options)
    after = [rules.logits(model, text), rules.logits(model, text, attention_mask=mask)[:, 5:]]
    assert surgery.keeps_function
    assert max(map(rules.difference, after, before)) <= 1e-5


def test_the_claim_is_made():
    assert {case.name for case in CLAIMS} >= {"standard", "toroidal"}


# A rule that no core can break measures nothing: each of these breaks one or more.


class BrokenCore(nn.Module):
    """Standard attention with one fault."""

    own_positions = False
    keeps_function = False

    def __init__(self, fault: str):
        super().__init__()
        self.fault = fault

    def forward(self, query, key, value, mask, scaling, query_start, key_start):
        key, value = key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1)
        queries, keys = query.shape[2], key.shape[2]
        start = 0 if self.fault == "counts queries from 0" else query_start - key_start
        causal = torch.ones(queries, keys, dtype=torch.bool).tril(start)
        if self.fault == "sees all without a mask" and mask is None:
            causal = torch.ones_like(causal)
        if self.fault == "sees the next token":
            mask = None if mask is None else mask | mask.roll(-1, dims=2)
            causal = causal.tril(start) | torch.ones_like(causal).tril(start + 1)
        if self.fault == "sees all with a mask" and mask is not None:
            mask = mask.any(dim=2, keepdim=True).expand_as(mask)
        if self.fault == "ignores padding":
            mask = None
        if self.fault == "scales by the length":
            scaling = scaling * keys / 100
        return scaled_dot_product_attention(
            query, key, value, attn_mask=causal if mask is None else mask, scale=scaling
        )


def broken(fault):
    model = rules.language_model("llama")
    for layer in architecture_of("llama").attention_layers(model):
        host(layer, BrokenCore(fault))
    return model


def violations(model):
    """Rule -> whether the model breaks it."""
    measured = {
        **{f"future, {form}": rules.future_influence(model, form)[0] for form in MASK_FORMS},
        "padding": rules.padding_influence(model),
        "prefix": rules.prefix_difference(model),
        "cache": rules.cache_difference(model),
        "padded cache": rules.cache_difference(model, padding=4),
        "static cache": rules.cache_difference(model, static=True),
    }
    return {rule for rule, value in measured.items() if value > 100 * ALLOWED}


@pytest.mark.parametrize(
    ("fault", "rules_broken"),
    [
        ("none", set()),
        ("sees all without a mask", {"future, none", "padding", "prefix"}),
        ("sees the next token", {f"future, {form}" for form in MASK_FORMS} | {"prefix", "cache"}),
        ("sees all with a mask", {f"future, {form}" for form in MASK_FORMS[1:]} | {"padding", "padded cache"}),
        ("ignores padding", {"padding"}),
        ("scales by the length", {"padding", "prefix", "cache", "padded cache", "static cache"}),
        ("counts queries from 0", {"cache"}),
    ],
)
def test_a_broken_core_is_caught(fault, rules_broken):
    found = violations(broken(fault))
    assert found >= rules_broken
    assert bool(found) == bool(rules_broken)
