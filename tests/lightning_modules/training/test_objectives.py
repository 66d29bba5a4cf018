import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_modules.batches import ModelInput
from lightning_modules.output_head import final_states, output_logits
from lightning_modules.surgery.trained_parameters import attention_parameters, thaw
from lightning_modules.surgery.twins import separate
from lightning_modules.training.objectives import EndToEnd, divergence, next_token_nll
from tests.rules import difference, disturb_cores, language_model, logits, tokens

FAMILIES = ["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"]
each_family = pytest.mark.parametrize("family", FAMILIES)
CHUNKS = [1, 4, 22, 23, 1000]  # of 22 predictions


def trained(family):
    return language_model(family).requires_grad_(True)


def teacher_of(family):
    return language_model(family, seed=1)


def gradients(loss, model):
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(parameters, found, strict=True) if gradient is not None}


def same_gradients(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5 * gradient.abs().max().item() + 1e-9)


# Parts


@each_family
def test_final_states_through_the_head_are_the_logits(family):
    model = language_model(family)
    text = tokens(model, 2, 12)
    with torch.no_grad():
        assert output_logits(model, final_states(model, ModelInput(text))).equal(logits(model, text))


def test_logits_are_capped_as_the_model_caps_them():
    model = language_model("gemma3")
    model.config.final_logit_softcapping = 0.5
    text = tokens(model, 2, 12)
    with torch.no_grad():
        found = output_logits(model, final_states(model, ModelInput(text)))
    assert found.abs().max() <= 0.5
    assert difference(found, logits(model, text)) < 1e-6


# Next-token loss


@each_family
def test_the_next_token_loss_is_that_of_a_plain_loop(family):
    model = language_model(family)
    text = tokens(model, 2, 12)
    probabilities = logits(model, text).double().softmax(-1)
    expected = -sum(math.log(probabilities[row, t, text[row, t + 1]].item()) for row in range(2) for t in range(11))
    for chunk in (None, *CHUNKS):
        assert next_token_nll(model, ModelInput(text), text, chunk).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.each_value
@each_family
@pytest.mark.parametrize("chunk", CHUNKS)
def test_chunks_change_no_gradient_of_the_next_token_loss(chunk, family):
    model = trained(family)
    text = tokens(model, 2, 12)
    expected = gradients(next_token_nll(model, ModelInput(text), text), model)
    same_gradients(gradients(next_token_nll(model, ModelInput(text), text, chunk), model), expected)


# Divergence


def kl(ours, theirs, temperature):
    """In float64, from probabilities."""
    p, q = (theirs.double() / temperature).softmax(-1), (ours.double() / temperature).softmax(-1)
    return (p * (p.log() - q.log())).sum(-1)[:, :-1].sum().item() * temperature**2


@pytest.mark.each_value
@each_family
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_divergence_follows_its_formula(temperature, family):
    model, teacher = language_model(family), teacher_of(family)
    text = tokens(model, 2, 12)
    with torch.no_grad():
        expected = kl(logits(model, text), logits(teacher, text), temperature)
        for chunk in (None, *CHUNKS):
            found = divergence(
                model, teacher, ModelInput(text), text, final_states(teacher, ModelInput(text)), temperature, chunk
            ).item()
            assert found == pytest.approx(expected, rel=1e-4)
    assert expected > 1


@pytest.mark.each_value
@each_family
@pytest.mark.parametrize("chunk", CHUNKS)
def test_chunks_change_no_gradient_of_the_divergence(chunk, family):
    model, teacher = trained(family), teacher_of(family)
    text = tokens(model, 2, 12)
    with torch.no_grad():
        states = final_states(teacher, ModelInput(text))
    expected = gradients(divergence(model, teacher, ModelInput(text), text, states, 2.0), model)
    same_gradients(gradients(divergence(model, teacher, ModelInput(text), text, states, 2.0, chunk), model), expected)


@each_family
@pytest.mark.parametrize("chunk", [None, 4])
def test_a_model_does_not_diverge_from_itself(chunk, family):
    """And has nothing to learn from itself, at any temperature."""
    model, text = trained(family), tokens(language_model(family), 2, 12)
    for temperature in (0.5, 1.0, 4.0):
        with torch.no_grad():
            states = final_states(model, ModelInput(text))
        loss = divergence(model, language_model(family), ModelInput(text), text, states, temperature, chunk)
        assert abs(loss.item()) < 1e-3
        assert all(gradient.abs().max() < 1e-3 for gradient in gradients(loss, model).values())


def test_the_gradient_of_the_divergence_is_the_difference_of_probabilities():
    """d KL / d logit = temperature * (ours - theirs)."""
    model, teacher = trained("phi"), teacher_of("phi")
    text, temperature = tokens(model, 2, 12), 2.0
    loss = divergence(model, teacher, ModelInput(text), text, final_states(teacher, ModelInput(text)), temperature)
    (bias,) = torch.autograd.grad(loss, [model.lm_head.bias])
    ours, theirs = (logits(each, text)[:, :-1].div(temperature).softmax(-1) for each in (model, teacher))
    assert difference(bias, temperature * (ours - theirs).sum((0, 1))) < 1e-4


def test_the_teacher_gets_no_gradient():
    model, teacher = trained("llama"), teacher_of("llama").requires_grad_(True)
    text = tokens(model, 2, 12)
    with torch.no_grad():
        states = final_states(teacher, ModelInput(text))
    divergence(model, teacher, ModelInput(text), text, states, 1.0, 4).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_divergence_from_a_teacher_of_another_width():
    model, teacher = language_model("llama"), language_model("gpt2", hidden_size=32)
    text = tokens(model, 2, 12)
    with torch.no_grad():
        found = divergence(model, teacher, ModelInput(text), text, final_states(teacher, ModelInput(text)))
    assert found.item() == pytest.approx(kl(logits(model, text), logits(teacher, text), 1.0), rel=1e-4)


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 3), length=st.integers(2, 9), chunk=st.integers(1, 30))
def test_chunks_of_any_size_change_nothing(rows, length, chunk):
    model, teacher = language_model("llama"), teacher_of("llama")
    text = tokens(model, rows, length)
    with torch.no_grad():
        states = final_states(teacher, ModelInput(text))
        assert next_token_nll(model, ModelInput(text), text, chunk).item() == pytest.approx(
            next_token_nll(model, ModelInput(text), text).item(), rel=1e-5
        )
        whole = divergence(model, teacher, ModelInput(text), text, states).item()
        assert divergence(model, teacher, ModelInput(text), text, states, chunk_size=chunk).item() == pytest.approx(
            whole, rel=1e-4
        )


@pytest.mark.parametrize("chunk", [3, 7])
def test_chunks_hold_no_more_logits_than_asked_for(chunk):
    model, sizes = trained("llama"), []
    model.lm_head.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    text = tokens(model, 2, 12)
    next_token_nll(model, ModelInput(text), text, chunk).backward()
    assert max(sizes) == chunk
    assert sum(sizes) == 2 * 22  # the backward pass computes them again


def test_rows_at_a_time_through_the_head_and_in_the_cache_change_nothing(monkeypatch):
    model, teacher, sizes = trained("llama"), teacher_of("llama"), []
    text = tokens(model, 2, 12)
    with torch.no_grad():
        states = final_states(teacher, ModelInput(text))
    losses = (
        lambda: next_token_nll(model, ModelInput(text), text),
        lambda: divergence(model, teacher, ModelInput(text), text, states),
    )
    whole = [gradients(loss(), model) for loss in losses]
    monkeypatch.setattr("lightning_modules.training.objectives.HEAD_ROWS", 5)
    monkeypatch.setattr("lightning_modules.nll.CHUNK_LOGITS", 2 * model.config.vocab_size)
    model.lm_head.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    for loss, expected in zip(losses, whole, strict=True):
        same_gradients(gradients(loss(), model), expected)
    assert sizes == [5, 5, 5, 5, 2] * 2  # each once


# End to end


@pytest.fixture
def prepared(make_module, make_stage):
    """A model of which the attention of its upper layers trains, and its workspace."""

    def prepared(family="llama", layers=(2,), chunk=None, num_layers=3, **options):
        module = make_module("toroidal", family, layers, num_layers=num_layers, **options)
        disturb_cores(module.model)
        parameters = attention_parameters(module.model, layers)
        separate(module.original, parameters.values())
        thaw(module.model, parameters)
        return module.model, make_stage(module, "next_token", loss_chunk_size=chunk).workspace

    return prepared


@pytest.mark.each_value
@each_family
@pytest.mark.parametrize("objective", ["next_token", "kl"])
@pytest.mark.parametrize("chunk", [None, 5])
def test_an_objective_with_cached_layers_is_the_same_as_without(chunk, objective, family, prepared):
    model, workspace = prepared(family, chunk=chunk)
    text = tokens(model, 3, 12)
    with torch.no_grad():
        states = final_states(workspace.original, ModelInput(text))
    plain = (
        next_token_nll(model, ModelInput(text), text)
        if objective == "next_token"
        else divergence(model, workspace.original, ModelInput(text), text, states)
    )
    expected, wanted = plain.item(), gradients(plain, model)
    end_to_end = EndToEnd(model, workspace, 12, objective)
    for _ in range(2):
        loss, count, parts = end_to_end(model, {"input_ids": text})
        assert loss.item() == pytest.approx(expected, rel=1e-4)
        assert count == 33
        assert parts == {}
        same_gradients(gradients(loss, model), wanted)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_temperature_reaches_the_divergence(temperature, prepared):
    model, workspace = prepared()
    text = tokens(model, 3, 12)
    loss, *_ = EndToEnd(model, workspace, 12, "kl", temperature)(model, {"input_ids": text})
    expected = kl(logits(model, text), logits(workspace.original, text), temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_the_chunk_size_of_the_workspace_is_kept(prepared):
    model, workspace = prepared(chunk=4)
    sizes = []
    model.lm_head.register_forward_hook(lambda module, args, output: sizes.append(output.shape[:-1].numel()))
    for objective in ("next_token", "kl"):
        EndToEnd(model, workspace, 12, objective)(model, {"input_ids": tokens(model, 2, 12)})
    assert max(sizes) == 4


@pytest.mark.parametrize(("blocks", "seen"), [(12, 5), (5, 12)])
def test_room_is_reserved_for_the_blocks_that_are_seen(blocks, seen, prepared, monkeypatch):
    """Not for those that repetitions of the text would need, nor for those that the stage does not come to."""
    model, workspace = prepared()
    workspace, asked = dataclasses.replace(workspace, train_blocks=tokens(model, blocks, 12)), []

    def note(places, blocks, entries, size):
        asked.append((len(places), entries, size))

    monkeypatch.setattr(workspace.activations, "reserve", note)
    EndToEnd(model, workspace, seen, "next_token")
    assert asked == [(1, 5, 12 * 64 * 4)]
    EndToEnd(model, workspace, seen, "kl")
    assert asked[1:] == [(1, 5, 12 * 64 * 4)] * 2


def test_the_cache_changes_nothing(make_module, make_stage):
    losses = []
    for cache in (True, False):
        module = make_module("toroidal", layers=[2], num_layers=3)
        parameters = attention_parameters(module.model, [2])
        separate(module.original, parameters.values())
        thaw(module.model, parameters)
        workspace = make_stage(module, "next_token", cache=cache).workspace
        for objective in ("next_token", "kl"):
            losses.append(
                EndToEnd(module.model, workspace, 12, objective)(
                    module.model, {"input_ids": tokens(module.model, 3, 12)}
                )
            )
    assert [loss.total.item() for loss in losses[:2]] == [loss.total.item() for loss in losses[2:]]
