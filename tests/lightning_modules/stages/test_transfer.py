import pytest
import torch

from data_modules.batches import ModelInput
from lightning_modules.hidden_states.recorded_calls import record_calls
from lightning_modules.stages import STAGES
from lightning_modules.surgery.trained_parameters import attention_parameters, thaw
from lightning_modules.surgery.twins import separate
from lightning_modules.training.imitation import EARLY_WEIGHT
from registries.architectures import architecture_of
from tests.rules import disturb_cores, language_model, tokens

FAMILIES = ["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"]


@pytest.fixture
def operate(make_module, make_stage):
    """A model with toroidal layers, and the stage that trains them."""

    def operate(family, layers, init="copy", num_layers=3, keys=None, **options):
        module = make_module("toroidal", family, layers, init, options=options, num_layers=num_layers)
        return module.model, make_stage(module, "transfer", **(keys or {}))

    return operate


def layers_of(model):
    return architecture_of(model.config.model_type).attention_layers(model)


def outputs_of_attention(model, text):
    """layer -> (hidden states that go into its attention, what comes out)."""
    seen, hooks = {}, []
    for index, layer in enumerate(layers_of(model)):

        def note(module, args, kwargs, output, index=index):
            seen[index] = (args[0] if args else kwargs["hidden_states"], output[0])

        hooks.append(layer.register_forward_hook(note, with_kwargs=True))
    with torch.no_grad():
        model(input_ids=text)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_weighted_relative_error(family, operate):
    """With inputs and outputs of the untouched model, whatever was replaced below."""
    model, stage = operate(family, [0, 1], init="random", depth=4, lambda_distance=1.0)
    text = tokens(model, 2, 12)
    original = stage.workspace.original
    given, target = outputs_of_attention(original, text)[1]
    call = record_calls(original, [architecture_of(original.config.model_type).attention_path(1)], ModelInput(text))
    with torch.no_grad():
        output = next(iter(call.values())).call(layers_of(model)[1], given)
    expected = 0.0
    for row in range(2):
        for t in range(12):
            error = (output[row, t] - target[row, t]).norm() ** 2 / target[row, t].norm() ** 2
            expected += (1 + EARLY_WEIGHT / (1 + t)) * error.item()
    loss, count, parts = stage.loss(model, {"input_ids": text})
    assert parts["error_layer_1"].item() == pytest.approx(expected, rel=1e-4)
    assert loss.item() == pytest.approx((parts["error_layer_0"] + parts["error_layer_1"]).item() / 2, rel=1e-6)
    assert count == 24


def test_the_loss_of_several_layers_is_their_mean(operate):
    text = tokens(language_model("llama"), 2, 12)
    single = [
        stage.loss(model, {"input_ids": text})[0].item()
        for model, stage in (operate("llama", [layer], depth=4) for layer in (0, 2))
    ]
    model, stage = operate("llama", [0, 2], depth=4)
    assert stage.loss(model, {"input_ids": text})[0].item() == pytest.approx(sum(single) / 2, rel=1e-5)


def test_a_layer_that_keeps_its_function_has_no_loss(operate):
    model, stage = operate("llama", [0, 1], depth=1, lambda_distance=0.0)
    assert stage.loss(model, {"input_ids": tokens(model, 2, 12)})[0].item() < 1e-8


def test_nothing_above_the_highest_replaced_layer_runs_and_nothing_twice(operate):
    model, stage = operate("llama", [0, 1], depth=2)
    original, calls = stage.workspace.original, []
    for each in (model, original):
        for index, block in enumerate(each.model.layers):
            block.mlp.register_forward_hook(lambda *_, index=index: calls.append(index))
        each.lm_head.register_forward_hook(lambda *_: calls.append("head"))
    text = tokens(model, 1, 8)
    stage.loss(model, {"input_ids": text})
    assert set(calls) == {0}  # not the MLP of layer 1
    calls.clear()
    stage.loss(model, {"input_ids": text})
    assert calls == []  # all from the cache


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_what_several_layers_did(family, operate):
    model, stage = operate(family, [0, 2], init="random", depth=2)
    text = tokens(model, 4, 12)
    separate(stage.workspace.original, stage.parameters(model).values())
    thaw(model, stage.parameters(model))
    optimizer = torch.optim.AdamW(stage.parameters(model).values(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss, count, _ = stage.loss(model, {"input_ids": text})
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_it_trains_the_replaced_attention_and_nothing_else(operate):
    model, stage = operate("llama", [0, 2], depth=2)
    assert stage.parameters(model) == attention_parameters(model, [0, 2])
    disturb_cores(model)
    separate(stage.workspace.original, stage.parameters(model).values())
    thaw(model, stage.parameters(model))
    stage.loss(model, {"input_ids": tokens(model, 2, 12)})[0].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in stage.parameters(model))
    assert all(parameter.grad is None for parameter in stage.workspace.original.parameters())


def test_it_works_in_a_bf16_model_with_fp32_masters(operate):
    model, stage = operate("llama", [0, 1], depth=2, lambda_distance=1.0)
    model.bfloat16()  # and so the original, which shares the parameters
    separate(stage.workspace.original, stage.parameters(model).values())
    thaw(model, stage.parameters(model))
    loss, *_ = stage.loss(model, {"input_ids": tokens(model, 2, 12)})
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in stage.parameters(model).values())


def test_it_is_registered():
    assert {"transfer", "next_token"} <= set(STAGES.names())
