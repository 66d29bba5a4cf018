import pytest
import torch

from lightning_modules.stages import STAGES
from lightning_modules.stages.transfer import EARLY_WEIGHT, Transfer
from lightning_modules.surgery import attention_parameters, replace_attention, thaw
from registries.architectures import architecture_of
from tests.rules import disturb_cores, language_model, tokens

FAMILIES = ["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"]


def operate(family, layers, init="copy", num_layers=3, **options):
    """A model with toroidal layers, and the stage that trains them."""
    model = language_model(family, num_layers=num_layers)
    torch.manual_seed(1)
    surgery = replace_attention(model, "toroidal", layers, init, options)
    return model, Transfer(surgery.originals, steps=10, blocks_per_step=2, blocks_per_pass=2, lr=1e-3)


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
def test_it_records_the_original_models_inputs_and_outputs(family):
    untouched = language_model(family, num_layers=3)
    text = tokens(untouched, 2, 12)
    expected = outputs_of_attention(untouched, text)
    model, stage = operate(family, [0, 2], init="random", depth=4)
    records = stage._record(model, text)
    assert records.keys() == {0, 2}
    for layer, (args, kwargs, target) in records.items():
        hidden = args[0] if args else kwargs["hidden_states"]
        torch.testing.assert_close(hidden, expected[layer][0])
        torch.testing.assert_close(target, expected[layer][1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_weighted_relative_error(family):
    model, stage = operate(family, [1], depth=4, lambda_distance=1.0)
    text = tokens(model, 2, 12)
    args, kwargs, target = stage._record(model, text)[1]
    with torch.no_grad():
        output = layers_of(model)[1](*args, **kwargs)[0]
    expected = 0.0
    for row in range(2):
        for t in range(12):
            error = (output[row, t] - target[row, t]).norm() ** 2 / target[row, t].norm() ** 2
            expected += (1 + EARLY_WEIGHT / (1 + t)) * error.item()
    loss, count = stage.loss(model, text)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert count == 24


def test_the_loss_of_several_layers_is_their_mean():
    text = tokens(language_model("llama"), 2, 12)
    single = [
        stage.loss(model, text)[0].item() for model, stage in (operate("llama", [layer], depth=4) for layer in (0, 2))
    ]
    model, stage = operate("llama", [0, 2], depth=4)
    assert stage.loss(model, text)[0].item() == pytest.approx(sum(single) / 2, rel=1e-5)


def test_a_layer_that_keeps_its_function_has_no_loss():
    model, stage = operate("llama", [0, 1], depth=1, lambda_distance=0.0)
    assert stage.loss(model, tokens(model, 2, 12))[0].item() < 1e-8


def test_nothing_above_the_highest_replaced_layer_runs():
    model, stage = operate("llama", [0, 1], depth=2)
    calls = []
    for index, block in enumerate(model.model.layers):
        block.mlp.register_forward_hook(lambda *_, index=index: calls.append(index))
    model.lm_head.register_forward_hook(lambda *_: calls.append("head"))
    stage.loss(model, tokens(model, 1, 8))
    assert calls == [0]  # not the MLP of layer 1


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_what_several_layers_did(family):
    model, stage = operate(family, [0, 2], init="random", depth=2)
    text = tokens(model, 4, 12)
    thaw(model, stage.parameters(model))
    optimizer = torch.optim.AdamW(stage.parameters(model).values(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss, count = stage.loss(model, text)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_it_trains_the_replaced_attention_and_nothing_else():
    model, stage = operate("llama", [0, 2], depth=2)
    assert stage.parameters(model) == attention_parameters(model, [0, 2])
    disturb_cores(model)
    thaw(model, stage.parameters(model))
    stage.loss(model, tokens(model, 2, 12))[0].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in stage.parameters(model))
    assert all(parameter.grad is None for original in stage.originals.values() for parameter in original.parameters())


def test_the_replaced_layers_are_in_place_afterwards_also_after_an_error():
    model, stage = operate("llama", [0, 1], depth=2)
    replaced = layers_of(model)
    stage.loss(model, tokens(model, 1, 8))
    assert layers_of(model) == replaced
    failure = model.model.layers[0].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stage.loss(model, tokens(model, 1, 8))
    failure.remove()
    assert layers_of(model) == replaced
    assert all(not original._forward_hooks for original in stage.originals.values())
    assert stage.loss(model, tokens(model, 1, 8))[0].isfinite()


def test_it_works_in_a_bf16_model_with_fp32_masters():
    model, stage = operate("llama", [0, 1], depth=2, lambda_distance=1.0)
    model.bfloat16()
    for original in stage.originals.values():
        original.bfloat16()
    thaw(model, stage.parameters(model))
    loss, _ = stage.loss(model, tokens(model, 2, 12))
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in stage.parameters(model).values())


def test_it_is_registered():
    assert {"transfer", "next_token"} <= set(STAGES.names())
