import pytest
import torch

from data_modules.batches import ModelInput
from lightning_modules.hidden_states.recorded_calls import record_calls
from lightning_modules.surgery.trained_parameters import attention_parameters, thaw
from lightning_modules.surgery.twins import separate
from lightning_modules.training.imitation import EARLY_WEIGHT
from registries.architectures import architecture_of
from tests.rules import disturb_cores, logits, tokens

FAMILIES = ["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"]
each_family = pytest.mark.parametrize("family", FAMILIES)
LENGTH = 12


@pytest.fixture
def operate(make_module, make_stage):
    """A model with toroidal layers that differ from the original's, and the stage that trains them."""

    def operate(family, layers, num_layers=4, dtype=torch.float32, init="copy", options=None, cache=True, **keys):
        options = {"depth": 2, "lambda_distance": 1.0} if options is None else options
        module = make_module("toroidal", family, layers, init, dtype, options, num_layers)
        disturb_cores(module.model)
        stage = make_stage(module, "block_wise", cache=cache, **keys)
        separate(module.original, stage.parameters(module.model).values())
        thaw(module.model, stage.parameters(module.model))
        return module.model, stage

    return operate


def blocks_of(model):
    return model.get_submodule(architecture_of(model.config.model_type).blocks)


@torch.no_grad()
def block_states(model, text, given=None):
    """Hidden states before the first block and after each, in whole passes of the model.

    Args:
        given: layer -> hidden states that this layer gets instead of what the one below computes.
    """
    seen, hooks = {}, []
    for layer, block in enumerate(blocks_of(model)):

        def enter(module, args, layer=layer):
            states = (given or {}).get(layer, args[0])
            seen.setdefault(layer, states)
            return (states, *args[1:])

        def leave(module, args, output, layer=layer):
            seen[layer + 1] = output[0] if isinstance(output, tuple) else output

        hooks += [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
    logits(model, text)
    for hook in hooks:
        hook.remove()
    return [seen[layer] for layer in range(len(blocks_of(model)) + 1)]


def plain_error(output, target, added):
    """The relative error by a plain loop, in float64."""
    output, target, added = (tensor.double() for tensor in (output, target, added))
    total = 0.0
    for row in range(output.shape[0]):
        for t in range(output.shape[1]):
            error = (output[row, t] - target[row, t]).norm() ** 2 / added[row, t].norm() ** 2
            total += (1 + EARLY_WEIGHT / (1 + t)) * error.item()
    return total


# What is learned


@pytest.mark.each_value
@each_family
@pytest.mark.parametrize(
    ("layers", "size", "groups"),
    [
        ([1], 1, {1: 2}),
        ([0, 2], 1, {0: 1, 2: 3}),
        ([1, 2], 2, {0: 2, 2: 4}),
        ([1], 3, {0: 3}),
        ([3], 3, {3: 4}),
        ([0, 3], 3, {0: 3, 3: 4}),
        ([0, 1], 4, {0: 4}),
        ([0, 1], 9, {0: 4}),
    ],
)
def test_with_inputs_of_the_original_every_group_learns_alone(layers, size, groups, family, operate):
    """Start and end of each group, and its error when it is fed the original's hidden states."""
    model, stage = operate(family, layers, layers_per_group=size)
    text = tokens(model, 2, LENGTH)
    original = block_states(stage.workspace.original, text)
    ours = block_states(model, text, given={start: original[start] for start in groups})
    loss, count, parts = stage.loss(model, {"input_ids": text})
    expected = {
        f"error_layer_{start}": plain_error(ours[end], original[end], original[end] - original[start])
        for start, end in groups.items()
    }
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(expected, rel=1e-3)
    assert loss.item() == pytest.approx(sum(expected.values()) / len(groups), rel=1e-3)
    assert count == 2 * LENGTH
    assert min(expected.values()) > 1e-2


@pytest.mark.each_value
@each_family
@pytest.mark.parametrize(
    ("layers", "size", "learning"),
    [([1], 1, {1: 2}), ([0, 2], 1, {0: 1, 2: 3}), ([0, 3], 1, {0: 1, 3: 4}), ([1, 2], 2, {0: 2, 2: 4})],
)
def test_with_inputs_of_the_recovered_model_a_group_gets_what_those_below_give(layers, size, learning, family, operate):
    """Layers between the groups that learn included: it is one pass through the recovered model."""
    model, stage = operate(family, layers, layers_per_group=size, inputs="recovered")
    text = tokens(model, 2, LENGTH)
    original, ours = block_states(stage.workspace.original, text), block_states(model, text)
    expected = {
        f"error_layer_{start}": plain_error(ours[end], original[end], original[end] - original[start])
        for start, end in learning.items()
    }
    loss, _, parts = stage.loss(model, {"input_ids": text})
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(expected, rel=1e-3)
    assert loss.item() == pytest.approx(sum(expected.values()) / len(learning), rel=1e-3)


def test_what_a_group_is_fed_matters(operate):
    losses = []
    for inputs in ("original", "recovered"):
        model, stage = operate("llama", [0, 2], inputs=inputs)
        losses.append(stage.loss(model, {"input_ids": tokens(model, 2, LENGTH)}).parts)
    assert losses[0]["error_layer_0"].equal(losses[1]["error_layer_0"])
    assert losses[0]["error_layer_2"].item() != pytest.approx(losses[1]["error_layer_2"].item(), rel=1e-2)


@pytest.mark.parametrize("inputs", ["original", "recovered"])
def test_no_gradient_crosses_groups(inputs, operate):
    """A layer's gradient is that of its own group's error."""
    model, stage = operate("llama", [0, 1, 3], inputs=inputs)
    text = tokens(model, 2, LENGTH)
    stage.loss(model, {"input_ids": text})[0].backward()
    together = {name: parameter.grad.clone() for name, parameter in stage.parameters(model).items()}
    original = block_states(stage.workspace.original, text)
    fed = original if inputs == "original" else block_states(model, text)
    calls = record_calls(stage.workspace.original, [f"model.layers.{layer}" for layer in (0, 1, 3)], ModelInput(text))
    for layer in (0, 1, 3):
        model.zero_grad()
        alone = calls[f"model.layers.{layer}"].call(blocks_of(model)[layer], fed[layer])
        error = (alone - original[layer + 1]).square().sum(-1)
        error = error / (original[layer + 1] - original[layer]).square().sum(-1)
        (error * (1 + EARLY_WEIGHT / torch.arange(1, LENGTH + 1))).sum().div(3).backward()
        for name, parameter in attention_parameters(model, [layer]).items():
            torch.testing.assert_close(together[name], parameter.grad, rtol=1e-3, atol=1e-5)


def test_the_layers_of_a_group_learn_together(operate):
    """The lower one's gradient is of the error after the upper one, not of its own."""
    gradients = []
    for size in (1, 2):
        model, stage = operate("llama", [0, 1], num_layers=2, layers_per_group=size)
        stage.loss(model, {"input_ids": tokens(model, 2, LENGTH)})[0].backward()
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad)
    assert not torch.allclose(gradients[0], gradients[1], rtol=0.1)
    assert all(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("inputs", ["original", "recovered"])
def test_a_layer_that_keeps_its_function_has_no_loss(inputs, operate):
    model, stage = operate(
        "llama", [0, 2], options={"depth": 1, "lambda_distance": 0.0, "fusion_mode": "identity"}, inputs=inputs
    )
    assert stage.loss(model, {"input_ids": tokens(model, 2, LENGTH)})[0].item() < 1e-8


# What runs


def count_mlps(model):
    calls = []
    for layer, block in enumerate(blocks_of(model)):
        block.mlp.register_forward_pre_hook(lambda *_, layer=layer: calls.append(layer))
    return calls


@pytest.mark.parametrize(
    ("layers", "keys", "runs"),
    [
        ([1], {}, [1]),
        ([1, 3], {}, [1, 3]),
        ([1, 3], {"inputs": "recovered"}, [1, 2, 3]),
        ([1], {"layers_per_group": 2}, [0, 1]),
        ([0, 1], {"inputs": "recovered"}, [0, 1]),
    ],
)
def test_only_groups_that_are_needed_run(layers, keys, runs, operate):
    model, stage = operate("llama", layers, **keys)
    text = tokens(model, 3, LENGTH)
    original = count_mlps(stage.workspace.original)
    stage.loss(model, {"input_ids": text})
    ours = count_mlps(model)
    original.clear()
    stage.loss(model, {"input_ids": text})
    assert ours == runs
    assert original == []  # all from the cache


@each_family
def test_the_cache_changes_nothing(family, operate):
    losses = []
    for cache in (True, False):
        model, stage = operate(family, [0, 2], cache=cache, inputs="recovered")
        losses += [stage.loss(model, {"input_ids": tokens(model, 2, LENGTH)})[0].item() for _ in range(2)]
    assert len(set(losses)) == 1


# What trains


@each_family
@pytest.mark.parametrize("inputs", ["original", "recovered"])
def test_it_trains_the_replaced_attention_and_nothing_else(inputs, family, operate):
    model, stage = operate(family, [0, 2], inputs=inputs)
    assert stage.parameters(model) == attention_parameters(model, [0, 2])
    stage.loss(model, {"input_ids": tokens(model, 2, LENGTH)})[0].backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == set(
        attention_parameters(model, [0, 2])
    )
    assert all(parameter.grad is None for parameter in stage.workspace.original.parameters())


@pytest.mark.each_value
@each_family
@pytest.mark.parametrize("keys", [{}, {"inputs": "recovered"}, {"layers_per_group": 2}])
def test_it_learns_what_several_layers_did(keys, family, operate):
    model, stage = operate(family, [0, 2], init="random", num_layers=3, **keys)
    text = tokens(model, 4, LENGTH)
    optimizer = torch.optim.AdamW(stage.parameters(model).values(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss, count, _ = stage.loss(model, {"input_ids": text})
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("inputs", ["original", "recovered"])
def test_it_works_in_a_bf16_model_with_fp32_masters(inputs, operate):
    model, stage = operate("llama", [0, 2], dtype=torch.bfloat16, inputs=inputs)
    loss, *_ = stage.loss(model, {"input_ids": tokens(model, 2, LENGTH)})
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in stage.parameters(model).values())


def test_room_is_reserved_for_the_ends_of_groups_that_are_needed(operate, monkeypatch):
    for keys, places in (({}, 4), ({"inputs": "recovered"}, 6), ({"layers_per_group": 4}, 2)):
        model, stage = operate("llama", [1, 3], steps=2, batch_size=3, **keys)
        asked = []
        monkeypatch.setattr(
            stage.workspace.activations, "reserve", lambda *arguments, asked=asked: asked.append(arguments)
        )
        stage.start(model)
        ((wanted, blocks, entries, size),) = asked
        assert (len(set(wanted)), entries, size) == (places, 6, blocks[0].tokens.shape[1] * 64 * 4)
