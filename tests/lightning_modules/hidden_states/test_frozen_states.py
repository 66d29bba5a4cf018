import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_modules.batches import ModelInput
from data_modules.caches.activation_cache import ActivationCache
from lightning_modules.hidden_states.frozen_prefix import FrozenPrefix, lowest_layer
from lightning_modules.hidden_states.frozen_states import FrozenStates
from lightning_modules.hidden_states.recorded_calls import Calls, record_calls
from lightning_modules.stages import STAGES
from lightning_modules.surgery.replaced_attention import replace_attention
from lightning_modules.surgery.trained_parameters import attention_parameters, thaw
from lightning_modules.surgery.twins import separate
from registries.architectures import architecture_of
from tests.rules import difference, disturb_cores, language_model, logits, tokens

FAMILIES = ["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"]
each_family = pytest.mark.parametrize("family", FAMILIES)


def blocks_of(model):
    return architecture_of(model.config.model_type).blocks


def part_path(model, layer, which):
    """Full name of a block, of its attention or of its MLP."""
    inside = {"block": "", "attention": f".{architecture_of(model.config.model_type).attention}", "mlp": ".mlp"}[which]
    return f"{blocks_of(model)}.{layer}{inside}"


def plain_pass(model, paths, text):
    """path -> hidden states that go in and out of a module, in a forward pass of the whole model."""
    seen, hooks = {}, []
    for path in paths:

        def note(module, args, kwargs, output, path=path):
            states = args[0] if args else kwargs["hidden_states"]
            seen[path] = (states.clone(), (output[0] if isinstance(output, tuple) else output).clone())

        hooks.append(model.get_submodule(path).register_forward_hook(note, with_kwargs=True))
    logits(model, text)
    for hook in hooks:
        hook.remove()
    return seen


def count_mlps(model):
    """A list that grows by the number of a layer whenever its MLP runs."""
    calls = []
    for layer, block in enumerate(model.get_submodule(blocks_of(model))):
        block.mlp.register_forward_pre_hook(lambda *_, layer=layer: calls.append(layer))
    return calls


@pytest.fixture
def cache(tmp_path):
    return ActivationCache(tmp_path / "cache", 1.0)


# Calls


@each_family
@pytest.mark.parametrize("which", ["attention", "block"])
def test_recorded_calls_have_what_goes_in_and_out_in_a_plain_pass(which, family):
    model = language_model(family, num_layers=3)
    text, paths = tokens(model, 2, 12), [part_path(model, layer, which) for layer in (2, 0)]
    records, expected = record_calls(model, paths, ModelInput(text)), plain_pass(model, paths, text)
    assert set(records) == set(paths)
    for path in paths:
        assert records[path].input.equal(expected[path][0])
        assert records[path].output.equal(expected[path][1])


@each_family
@pytest.mark.parametrize("which", ["attention", "block"])
def test_a_recorded_call_can_be_repeated(which, family):
    """On other hidden states, too: with those of another text it gives what the module makes of them there."""
    model = language_model(family, num_layers=2)
    text, path = tokens(model, 2, 12), part_path(model, 1, which)
    record = record_calls(model, [path], ModelInput(text))[path]
    other = record_calls(model, [path], ModelInput(text.flip(1)))[path]
    with torch.no_grad():
        assert difference(record.call(model.get_submodule(path), other.input), other.output) < 1e-6


@each_family
def test_nothing_runs_after_the_last_recorded_module(family):
    model = language_model(family, num_layers=3)
    calls = count_mlps(model)
    model.get_submodule(part_path(model, 1, "attention")).register_forward_hook(lambda *_: calls.append("attention"))
    model.get_submodule(part_path(model, 2, "attention")).register_forward_pre_hook(lambda *_: calls.append("above"))
    model.get_output_embeddings().register_forward_pre_hook(lambda *_: calls.append("head"))
    record_calls(model, [part_path(model, layer, "attention") for layer in (0, 1)], ModelInput(tokens(model, 1, 5)))
    # In gpt_neox and phi attention and MLP are side by side, in whichever order.
    assert {"attention", "above", "head", 2}.intersection(calls) == {"attention"}
    assert calls.count("attention") == calls.count(0) == 1


def test_a_recording_leaves_no_hooks_and_no_gradients():
    model = language_model("llama").requires_grad_(True)
    path = part_path(model, 0, "attention")
    record = record_calls(model, [path], ModelInput(tokens(model, 1, 5)))[path]
    assert not record.output.requires_grad
    assert not model.get_submodule(path)._forward_hooks
    with pytest.raises(IndexError):
        record_calls(model, [path], ModelInput(torch.full((1, 5), 10_000)))
    assert not model.get_submodule(path)._forward_hooks


def test_a_module_that_is_not_called_is_an_error():
    model = language_model("llama")
    with pytest.raises(RuntimeError, match="only .*self_attn.* were called"):
        record_calls(model, [part_path(model, 0, "attention"), "lm_head"], ModelInput(tokens(model, 1, 5)))


@each_family
def test_calls_by_shape_are_those_of_any_text_of_the_shape(family):
    model = language_model(family, num_layers=2)
    paths = [part_path(model, layer, "block") for layer in range(2)]
    calls, mlps = Calls(model, paths), count_mlps(model)
    for length in (7, 12):
        texts = [tokens(model, 2, length), tokens(model, 2, length).flip(1)]
        expected = record_calls(model, paths, ModelInput(texts[1]))
        calls(ModelInput(texts[0]))
        mlps.clear()
        found = calls(ModelInput(texts[1]))
        assert mlps == []
        for path in paths:
            with torch.no_grad():
                output = found[path](model.get_submodule(path), expected[path].input)
            assert difference(output, expected[path].output) < 1e-6


# States

SIDES = [("attention", "input"), ("attention", "output"), ("block", "input"), ("block", "output")]


@each_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_states_are_those_of_a_plain_pass(dtype, family, cache):
    model = language_model(family, num_layers=3).to(dtype)
    text = tokens(model, 3, 12)
    wanted = {f"{which} {side}": (part_path(model, 1, which), side) for which, side in SIDES}
    states = FrozenStates(model, wanted, cache, {"weights": "w"})
    # Row by row, as they are computed: so that they are the same to the last bit.
    passes = [plain_pass(model, [path for path, _ in wanted.values()], row[None]) for row in text]
    for _ in range(2):
        found = states(ModelInput(text))
        assert set(found) == set(wanted)
        for name, (path, side) in wanted.items():
            expected = torch.cat([seen[path][("input", "output").index(side)] for seen in passes])
            assert found[name].dtype == dtype
            assert found[name].equal(expected)


def test_frozen_states_are_computed_once_per_block(cache):
    model = language_model("llama", num_layers=3)
    calls, text = count_mlps(model), tokens(model, 3, 12)
    wanted = {"in": (part_path(model, 1, "block"), "input"), "out": (part_path(model, 1, "block"), "output")}
    first = FrozenStates(model, wanted, cache, {"weights": "w"})(ModelInput(text))
    assert calls == [0, 1] * 3
    again = FrozenStates(model, wanted, cache, {"weights": "w"})(ModelInput(text[[2, 0]]))
    assert calls == [0, 1] * 3
    assert all(again[name].equal(first[name][[2, 0]]) for name in wanted)
    FrozenStates(model, wanted, cache, {"weights": "others"})(ModelInput(text))
    assert calls == [0, 1] * 6


def test_the_output_of_a_block_and_the_input_of_the_next_are_places_of_their_own(cache):
    model = language_model("llama", num_layers=3)
    paths = [part_path(model, layer, which) for layer in range(3) for which in ("attention", "block")]
    wanted = {f"{path} {side}": (path, side) for path in paths for side in ("input", "output")}
    places = FrozenStates(model, wanted, cache, {"weights": "w"}).keys
    assert len(set(places.values())) == len(wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_reserve_what_they_take(dtype, cache, monkeypatch):
    model = language_model("llama", num_layers=3).to(dtype)
    wanted = {side: (part_path(model, 1, "block"), side) for side in ("input", "output")}
    asked = []
    monkeypatch.setattr(cache, "reserve", lambda *arguments: asked.append(arguments))
    states = FrozenStates(model, wanted, cache, {"weights": "w"})
    blocks = list(ModelInput(tokens(model, 7, 12)).rows())
    for visits in (5, 100):
        states.reserve(blocks, visits)
    found = states(ModelInput(tokens(model, 1, 12)))["input"]
    places, size = list(states.keys.values()), found.numel() * found.element_size()
    assert asked == [(places, blocks, 5, size), (places, blocks, 7, size)]


# The prefix


@pytest.fixture
def prepared(make_module, make_stage):
    """A module of which the attention of some layers trains, and its workspace."""

    def prepared(
        family="llama", layers=(2,), num_layers=3, replacement="toroidal", train=None, changes=None, **options
    ):
        module = make_module(replacement, family, layers=layers, num_layers=num_layers, **options)
        parameters = attention_parameters(module.model, layers if train is None else train)
        separate(module.original, parameters.values())
        thaw(module.model, parameters)
        workspace = dataclasses.replace(make_stage(module, "next_token").workspace, changes=changes or {})
        return module.model, workspace

    return prepared


def loss_and_gradients(model, text):
    """Logits, and name -> gradient of what trains, none of which is zero."""
    output = model(input_ids=text, use_cache=False).logits
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    gradients = torch.autograd.grad((output * weights).mean(), parameters)
    return output.detach(), dict(zip(names, gradients, strict=True))


@each_family
@pytest.mark.parametrize(("num_layers", "layer"), [(3, 1), (3, 2), (4, 3)])
def test_reading_back_gives_the_same_logits_and_gradients(num_layers, layer, family, prepared):
    model, workspace = prepared(family, [layer], num_layers)
    disturb_cores(model)
    text = tokens(model, 3, 12)
    expected, gradients = loss_and_gradients(model, text)
    prefix = FrozenPrefix(model, workspace)
    assert prefix.layers == layer
    for _ in range(2):
        with prefix.read_back(ModelInput(text)):
            output, found = loss_and_gradients(model, text)
        assert difference(output, expected) < 1e-5
        for name, gradient in gradients.items():
            assert difference(found[name], gradient) < 1e-5


@each_family
def test_the_blocks_below_run_once_per_block_of_text(family, prepared):
    model, workspace = prepared(family)
    calls, text = count_mlps(model), tokens(model, 3, 12)
    prefix = FrozenPrefix(model, workspace)
    with prefix.read_back(ModelInput(text)):
        assert calls == [0, 1] * 3
        logits(model, text)
    assert calls == [0, 1] * 3 + [2]
    with prefix.read_back(ModelInput(text[1:])):
        logits(model, text[1:])
    assert calls == [0, 1] * 3 + [2, 2]
    with FrozenPrefix(model, workspace).read_back(ModelInput(text)):  # of another run
        logits(model, text)
    assert calls == [0, 1] * 3 + [2, 2, 2]


@each_family
@pytest.mark.parametrize("failing", [False, True])
def test_a_model_is_itself_again_afterwards(failing, family, prepared):
    model, workspace = prepared(family)
    text = tokens(model, 2, 12)
    expected = logits(model, text)
    prefix = FrozenPrefix(model, workspace)
    with pytest.raises(KeyError) if failing else torch.no_grad(), prefix.read_back(ModelInput(text)):
        assert logits(model, text.flip(1)).equal(logits(model, text))  # what was read, whatever comes in
        if failing:
            raise KeyError
    assert all("forward" not in vars(module) for module in model.modules())
    calls = count_mlps(model)
    assert logits(model, text).equal(expected)
    assert calls == [0, 1, 2]


def test_a_backward_pass_after_the_context_is_the_same(prepared):
    """With checkpointing it runs blocks again, when those below compute by themselves again."""
    model, workspace = prepared("llama", [1, 2], 3)
    disturb_cores(model)
    text = tokens(model, 3, 12)
    _, expected = loss_and_gradients(model, text)
    model.activation_checkpointing_enable({"use_reentrant": False})
    for block in model.model.layers:
        block.training = True
    with FrozenPrefix(model, workspace).read_back(ModelInput(text)):
        output = model(input_ids=text, use_cache=False).logits
    calls = count_mlps(model)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    (output * weights).mean().backward()
    assert sorted(calls) == [1, 2]  # again, and not the one below
    for name, gradient in expected.items():
        assert difference(model.get_parameter(name).grad, gradient) < 1e-5


def test_nothing_is_cached_where_the_lowest_layer_or_the_embeddings_train(prepared):
    for layers, train in (([0, 2], None), ([2], [0])):
        model, workspace = prepared(layers=layers, train=train)
        prefix = FrozenPrefix(model, workspace)
        assert prefix.layers == 0 and prefix.states is None
        calls, text = count_mlps(model), tokens(model, 2, 12)
        prefix.reserve(list(ModelInput(text).rows()), 12)
        for _ in range(2):
            with prefix.read_back(ModelInput(text)):
                logits(model, text)
        assert calls == [0, 1, 2] * 2
        assert not workspace.activations.folder.exists()


@pytest.mark.parametrize("which", ["embeddings", "norm"])
def test_what_lies_outside_of_the_layers_counts_as_the_lowest(which, prepared):
    model, workspace = prepared()
    {"embeddings": model.model.embed_tokens, "norm": model.model.norm}[which].requires_grad_(True)
    assert FrozenPrefix(model, workspace).layers == 0


# Where a prefix lies in the cache


def place_of(model, workspace):
    (where,) = FrozenPrefix(model, workspace).states.keys.values()
    return where


@each_family
def test_models_that_differ_only_above_share_a_place(family, prepared):
    places = {
        place_of(*prepared(family, changes={"replacement": number}, **arguments))
        for number, arguments in enumerate(
            [{}, {"options": {"depth": 4}}, {"init": "random"}, {"replacement": "window", "options": {"window": 2}}]
        )
    }
    assert len(places) == 1


def test_the_place_is_that_of_the_untouched_models_states(prepared, cache):
    model, workspace = prepared()
    wanted = {"states": ("model.layers.1", "output")}
    states = FrozenStates(workspace.original, wanted, cache, workspace.identity)
    assert place_of(model, workspace) == states.keys["states"]


def test_the_place_depends_on_the_lowest_layer_that_trains(prepared):
    assert place_of(*prepared(layers=[1])) != place_of(*prepared(layers=[2]))


def test_a_replaced_layer_below_is_another_place(prepared):
    """By what was done there, as cores need not have parameters by which it would show."""
    arguments = {"layers": [0, 2], "train": [2], "replacement": "window"}
    variants = [
        ({"replacement": "toroidal"}, {"changes": {"replacement": "none"}}),
        (arguments, {"options": {"window": 2}, "changes": {"window": 2}}),
        (arguments, {"options": {"window": 3}, "changes": {"window": 3}}),
        ({**arguments, "replacement": "toroidal"}, {"changes": {"depth": 2}}),
    ]
    places = [place_of(*prepared(**one, **other)) for one, other in variants]
    assert len(set(places)) == len(variants)


@each_family
@pytest.mark.parametrize("which", ["attention", "block", "embeddings"])
def test_trained_weights_below_are_another_place(which, family, prepared):
    """Whatever there is below, and again another one when it has been trained on."""
    model, workspace = prepared(family)
    places = [place_of(model, workspace)]
    changing = (
        model.get_input_embeddings() if which == "embeddings" else model.get_submodule(part_path(model, 1, which))
    )
    separate(workspace.original, list(changing.parameters()))
    for _ in range(2):
        with torch.no_grad():
            next(changing.parameters()).add_(0.01)
        places.append(place_of(model, workspace))
    assert len(set(places)) == 3


@each_family
def test_lora_below_is_another_place(family, prepared):
    model, workspace = prepared(family)
    plain = place_of(model, workspace)
    lora = STAGES.build("lora", workspace=workspace, steps=1, lr=0.1, batch_size=1, layers=[0], rank=2)
    lora.prepare(model)
    thaw(model.double(), attention_parameters(model, [2]))  # in fp32, such large weights blow up the rounding
    prefix, text = FrozenPrefix(model, workspace), tokens(model, 2, 12)
    added = [parameter for name, parameter in model.named_parameters() if ".recovery." in name]
    with torch.no_grad():
        for parameter in added:
            parameter.normal_()
    trained = FrozenPrefix(model, workspace)
    assert len({plain, *prefix.states.keys.values(), *trained.states.keys.values()}) == 3
    with trained.read_back(ModelInput(text)):
        found = logits(model, text)
    assert difference(found, logits(model, text)) < 1e-5


def test_lora_above_shares_the_place(prepared):
    model, workspace = prepared()
    plain = place_of(model, workspace)
    lora = STAGES.build("lora", workspace=workspace, steps=1, lr=0.1, batch_size=1, rank=2)
    lora.prepare(model)
    thaw(model, lora.parameters(model))
    assert place_of(model, workspace) == plain


def test_the_prefix_of_a_model_with_replaced_layers_below_is_its_own(prepared):
    """Not that of the untouched model, though the weights may be the same."""
    model, workspace = prepared(layers=[0, 2], train=[2], options={"lambda_distance": 2.0})
    text = tokens(model, 2, 12)
    expected = logits(model, text)
    FrozenStates(
        workspace.original, {"states": ("model.layers.1", "output")}, workspace.activations, workspace.identity
    )(ModelInput(text))
    with FrozenPrefix(model, workspace).read_back(ModelInput(text)):
        assert difference(logits(model, text), expected) < 1e-5


# The lowest layer


def test_the_lowest_layer_is_that_of_the_lowest_trained_parameter():
    names = ["model.layers.11.mlp.up.weight", "model.layers.2.self_attn.core.left", "model.layers.10.norm.weight"]
    assert lowest_layer(names, "model.layers") == 2


@given(st.lists(st.integers(0, 40), min_size=1))
def test_the_lowest_layer_is_a_minimum_of_numbers(layers):
    assert lowest_layer([f"transformer.h.{layer}.attn.weight" for layer in layers], "transformer.h") == min(layers)


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.norm.weight", "model.embed_tokens.weight", "model.layersets.3.weight"]
)
def test_a_parameter_outside_of_the_layers_makes_it_0(name):
    assert lowest_layer(["model.layers.3.weight", name], "model.layers") == 0


def test_where_nothing_trains_it_is_0():
    assert lowest_layer([], "model.layers") == 0


@each_family
def test_the_lowest_layer_of_every_family(family):
    model = language_model(family, num_layers=3)
    replace_attention(model, "toroidal", [1, 2])
    assert lowest_layer(list(attention_parameters(model, [1, 2])), blocks_of(model)) == 1
    assert lowest_layer([name for name, _ in model.named_parameters()], blocks_of(model)) == 0
