import math

import pytest
import torch

from data_modules.batches import ModelInput
from lightning_modules.hidden_states.recorded_calls import record_calls
from lightning_modules.surgery.trained_parameters import thaw
from lightning_modules.surgery.twins import separate
from lightning_modules.training.imitation import EARLY_WEIGHT, AttentionWeights, relative_error
from registries.architectures import architecture_of
from tests.rules import disturb_cores, tokens

FAMILIES = ["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"]
each_family = pytest.mark.parametrize("family", FAMILIES)


# The relative error


def states(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_relative_error_is_that_of_a_plain_loop(dtype):
    output, target, scale = (states(2, 7, 5, seed=seed, dtype=dtype) for seed in range(3))
    error = relative_error(output, target, scale)
    assert error.shape == (2, 7)
    assert error.dtype == torch.float32
    for row in range(2):
        for t in range(7):
            difference = sum((output[row, t, c].item() - target[row, t, c].item()) ** 2 for c in range(5))
            size = sum(scale[row, t, c].item() ** 2 for c in range(5))
            expected = (1 + EARLY_WEIGHT / (1 + t)) * difference / size
            assert error[row, t].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_the_relative_error_does_not_depend_on_the_size_of_a_token(factor):
    output, target = states(1, 4, 5), states(1, 4, 5, seed=1)
    sizes = torch.tensor([1.0, factor, 1.0, factor])[:, None]
    expected = relative_error(output, target, target)
    torch.testing.assert_close(relative_error(output * sizes, target * sizes, target * sizes), expected)


def test_a_token_of_size_0_has_a_finite_error():
    output, zero = states(1, 4, 5).requires_grad_(), torch.zeros(1, 4, 5)
    error = relative_error(output, zero, zero).sum()
    error.backward()
    assert error.isfinite() and output.grad.isfinite().all()
    assert relative_error(zero, zero, zero).sum() == 0


def test_the_relative_error_of_itself_is_0():
    assert relative_error(states(2, 3, 4), states(2, 3, 4), states(2, 3, 4, seed=1)).abs().max() == 0


# The attention weights


@pytest.fixture
def compare(make_module):
    """Output of a replaced layer and the divergence of its weights, on the states that the original layer gets."""

    def compare(family, replacement, layer=1, change=None, dtype=torch.float32, **options):
        module = make_module(replacement, family, [layer], options=options, dtype=dtype)
        disturb_cores(module.model)
        architecture = architecture_of(module.model.config.model_type)
        path = architecture.attention_path(layer)
        parameters = dict(module.model.get_submodule(path).named_parameters(prefix=path))
        separate(module.original, parameters.values())
        thaw(module.model, parameters)
        weights = AttentionWeights(module.original, [layer])
        record = record_calls(module.original, [path], ModelInput(tokens(module.model, 2, 12)))[path]
        attention = module.model.get_submodule(path)
        if change:
            change(attention)
        output, divergence = weights.compare(layer, attention, record.call, record.input)
        return module, record, output, divergence.sum()

    return compare


KEEPING = [("standard", {}), ("toroidal", {"depth": 1, "lambda_distance": 0.0, "fusion_mode": "identity"})]
CHANGING = [
    ("toroidal", {"depth": 2, "lambda_distance": 0.0, "fusion_mode": "identity"}),
    ("toroidal", {"depth": 1, "lambda_distance": 5.0, "period": 9, "fusion_mode": "identity"}),
    ("window", {"window": 3}),
]


@each_family
@pytest.mark.parametrize(("replacement", "options"), KEEPING)
def test_a_core_that_keeps_the_function_has_no_divergence(replacement, options, family, compare):
    _, record, output, divergence = compare(family, replacement, **options)
    assert divergence.abs().item() < 1e-4
    torch.testing.assert_close(output, record.output, rtol=1e-4, atol=1e-5)


@each_family
@pytest.mark.parametrize(("replacement", "options"), CHANGING)
def test_another_core_has_a_divergence(replacement, options, family, compare):
    *_, divergence = compare(family, replacement, **options)
    assert divergence.item() > 1e-2


@each_family
@pytest.mark.parametrize(("replacement", "options"), CHANGING)
def test_the_output_is_that_of_the_replaced_layer(replacement, options, family, compare):
    module, record, output, _ = compare(family, replacement, **options)
    path = architecture_of(module.model.config.model_type).attention_path(1)
    with torch.no_grad():
        expected = record.call(module.model.get_submodule(path), record.input)
    assert output.equal(expected)
    assert output.requires_grad


def eager_weights(model, text, layer):
    """The attention weights that transformers itself tells, (batch, heads, queries, keys)."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(input_ids=text, output_attentions=True, use_cache=False).attentions[layer].double()


@each_family
def test_the_divergence_is_that_of_transformers_own_weights(family, compare):
    """Of a window of three steps, whose weights are the original's, cut off and scaled up to sum to 1 again."""
    module, *_, divergence = compare(family, "window", window=3)
    theirs = eager_weights(module.original, tokens(module.model, 2, 12), 1)
    expected = 0.0
    for row in range(2):
        for head in range(theirs.shape[1]):
            for i in range(12):
                seen = range(max(0, i - 3), i + 1)
                total = sum(theirs[row, head, i, j].item() for j in seen)
                for j in range(i + 1):
                    p = theirs[row, head, i, j].item()
                    q = p / total if j in seen else 1e-12
                    expected += p * math.log(max(p, 1e-12) / max(q, 1e-12)) / theirs.shape[1]
    assert divergence.item() == pytest.approx(expected, rel=1e-3)


@each_family
def test_the_original_stays_what_it_was_when_the_layer_trains(family, compare):
    """Its weights are compared with those of the untouched model, not with its own."""

    def change(attention):
        with torch.no_grad():
            for parameter in attention.parameters():
                parameter.add_(torch.randn_like(parameter))

    *_, divergence = compare(family, "standard", change=change)
    assert divergence.item() > 1e-2


def test_the_divergence_has_gradients_for_the_replaced_layer_alone(compare):
    module, *_, divergence = compare("llama", "toroidal", depth=2, temperature=True)
    divergence.backward()
    named = dict(module.model.model.layers[1].self_attn.named_parameters())
    for name in ("q_proj.weight", "k_proj.weight", "core.log_temperature"):
        assert named[name].grad.abs().max() > 0
    assert named["v_proj.weight"].grad is None
    assert all(parameter.grad is None for parameter in module.original.parameters())


def test_a_step_against_the_divergence_makes_it_smaller(compare):
    module, record, _, divergence = compare("llama", "toroidal", depth=2, temperature=True)
    divergence.backward()
    attention = module.model.model.layers[1].self_attn
    with torch.no_grad():
        for parameter in attention.parameters():
            if parameter.grad is not None:
                parameter -= 1e-4 * parameter.grad
    _, after = AttentionWeights(module.original, [1]).compare(1, attention, record.call, record.input)
    assert after.sum() < divergence


def test_it_works_in_a_bf16_model_with_fp32_masters(compare):
    *_, output, divergence = compare("llama", "toroidal", dtype=torch.bfloat16, depth=2)
    assert output.dtype == torch.bfloat16
    assert divergence.dtype == torch.float32
    divergence.backward()


def test_nothing_of_the_original_is_replaced_or_copied(make_module):
    module = make_module("toroidal")
    before = set(module.original.parameters())
    weights = AttentionWeights(module.original, [0, 1])
    assert set(module.original.parameters()) == before
    assert not any(hasattr(layer.self_attn, "core") for layer in module.original.model.layers)
    for attention in weights.originals.values():
        assert set(attention.parameters()) <= before
