"""Hidden states in the place of a model's own: at every block of every family."""

import pytest
import torch

from data_modules.batches import ModelInput
from lightning_modules.hidden_states.injection import block_entry, injected
from lightning_modules.hidden_states.recorded_calls import record_calls
from tests.rules import language_model, logits, tokens

FAMILIES = ["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"]
LAYERS = 3


def states_at(model, layer, text):
    path, side = block_entry(model, layer)
    return getattr(record_calls(model, [path], ModelInput(text))[path], side)


@pytest.mark.each_value
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", range(LAYERS + 1))
def test_a_models_own_states_give_its_own_logits_bit_for_bit(family, layer):
    model = language_model(family, num_layers=LAYERS)
    text = tokens(model, 2, 12)
    with injected(model, layer, states_at(model, layer, text)):
        assert logits(model, text).equal(logits_of(model, text))
        assert not logits(model, text.flip(0)).isnan().any()
    assert logits(model, text).equal(logits_of(language_model(family, num_layers=LAYERS), text))


def logits_of(model, text):
    return language_model_logits(model.config.model_type, text)


def language_model_logits(model_type, text):
    family = "gemma3" if model_type == "gemma3_text" else model_type
    return logits(language_model(family, num_layers=LAYERS), text)


@pytest.mark.parametrize("layer", range(LAYERS + 1))
def test_the_blocks_below_do_not_run_and_the_others_do(layer):
    model, ran = language_model("llama", num_layers=LAYERS), []
    text = tokens(model, 1, 12)
    states = states_at(model, layer, text)
    for index, block in enumerate(model.model.layers):
        block.mlp.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
    with injected(model, layer, states):
        logits(model, text)
    assert ran == list(range(layer, LAYERS))
    logits(model, text)
    assert ran[LAYERS - layer :] == list(range(LAYERS))


@pytest.mark.parametrize("layer", [0, 2])
def test_other_states_give_other_logits_and_gradients_flow_into_them(layer):
    model = language_model("llama", num_layers=LAYERS)
    text = tokens(model, 1, 12)
    states = (states_at(model, layer, text) * 1.5).requires_grad_(True)
    with injected(model, layer, states):
        output = model(input_ids=text, use_cache=False).logits
    assert not output.equal(logits(model, text))
    output[0, 5].sum().backward()
    assert states.grad[0, :6].abs().sum() > 0 and states.grad[0, 6:].abs().sum() == 0


def test_a_failure_within_leaves_the_model_as_it_was():
    model = language_model("llama", num_layers=LAYERS)
    text = tokens(model, 1, 12)
    expected = logits(model, text)
    for layer in (0, 2):
        with pytest.raises(ValueError, match="inside"), injected(model, layer, torch.zeros(1, 12, 64)):
            raise ValueError("inside")
        assert logits(model, text).equal(expected)
