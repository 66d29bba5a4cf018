import pytest
import torch
from torch import nn

from lightning_modules.surgery.replaced_attention import bias_range, replace_attention
from lightning_modules.surgery.trained_parameters import attention_parameters, thaw
from lightning_modules.surgery.twins import separate, twin
from registries import ATTENTION, UserError
from registries.architectures import architecture_of
from tests.rules import difference, language_model, logits, tokens

FAMILIES = ["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"]
each_family = pytest.mark.parametrize("family", FAMILIES)


def weights(model):
    return {name: parameter.clone() for name, parameter in model.named_parameters()}


def changed(model, before):
    return {
        name for name, parameter in model.named_parameters() if name in before and not parameter.equal(before[name])
    }


@each_family
def test_a_copied_layer_keeps_every_weight(family):
    model = language_model(family)
    before = weights(model)
    replace_attention(model, "toroidal", [0, 1])
    assert changed(model, before) == set()


@each_family
def test_init_random_redraws_exactly_the_projections(family):
    model = language_model(family)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter)  # biases too
    before, architecture = weights(model), architecture_of(model.config.model_type)
    torch.manual_seed(0)
    replace_attention(model, "standard", [1], init="random")
    modules = [path for role, path in architecture.roles.items() if role.startswith("attention.")]
    projections = {
        name for name in before if any(name.startswith(f"{architecture.blocks}.1.{path}.") for path in modules)
    }
    assert changed(model, before) == projections
    for name in projections:
        drawn = model.get_parameter(name)
        if name.endswith("bias"):
            assert (drawn == 0).all()
        else:
            assert drawn.std().item() == pytest.approx(model.config.initializer_range, rel=0.1)


def test_what_is_drawn_follows_from_torchs_seed():
    drawn = []
    for seed in (3, 3, 4):
        model = language_model("llama")
        torch.manual_seed(seed)
        replace_attention(model, "toroidal", [0], init="random", options={"depth": 4, "fusion_mode": "attention"})
        drawn.append(weights(model))
    assert all(drawn[0][name].equal(drawn[1][name]) for name in drawn[0])
    different = {name for name in drawn[0] if not drawn[0][name].equal(drawn[2][name])}
    assert different == {
        f"model.layers.0.self_attn.{name}"
        for name in (
            "q_proj.weight",
            "k_proj.weight",
            "v_proj.weight",
            "o_proj.weight",
            "core.fusion.query",
            "core.fusion.key",
        )
    }


@each_family
@pytest.mark.parametrize("init", ["copy", "random"])
def test_a_twin_stays_what_the_model_was(family, init):
    model = language_model(family)
    text = tokens(model, 2, 12)
    before, original = logits(model, text), twin(model)
    assert set(original.parameters()) == set(model.parameters())  # no copies
    replace_attention(model, "toroidal", [1], init, {"depth": 4})
    changing = attention_parameters(model, [1])
    separate(original, changing.values())
    for parameter in changing.values():
        torch.nn.init.normal_(parameter)
    assert difference(logits(model, text), before) > 1e-3
    assert logits(original, text).equal(before)
    assert set(original.parameters()) & set(changing.values()) == set()


def test_tied_weights_of_a_twin_stay_tied():
    model = language_model("gpt2")
    original, head = twin(model), model.get_output_embeddings().weight
    assert head is model.get_input_embeddings().weight
    separate(original, [head])
    assert original.get_output_embeddings().weight is original.get_input_embeddings().weight is not head


@pytest.mark.parametrize("training", [True, False])
def test_a_core_is_in_the_mode_of_its_layer(training):
    """Or dropout would act in a model that is only scored."""
    model = language_model("llama").train(training)
    replace_attention(model, "toroidal", [0], options={"dropout": 0.5})
    assert model.model.layers[0].self_attn.core.training == training


@pytest.mark.parametrize(
    ("name", "init", "options", "keeps"),
    [
        ("standard", "copy", {}, True),
        ("standard", "random", {}, False),
        ("toroidal", "copy", {"depth": 1, "lambda_distance": 0.0}, True),
        ("toroidal", "copy", {"depth": 2}, False),
        ("window", "copy", {}, False),
    ],
)
def test_keeps_function(name, init, options, keeps):
    assert replace_attention(language_model("llama"), name, [0, 1], init, options).keeps_function == keeps


@pytest.mark.parametrize(("family", "says"), [("gpt2", True), ("llama", False)])
def test_position_codes_that_cannot_be_taken_out_are_noted(family, says):
    surgery = replace_attention(language_model(family), "toroidal", [0], options={"position": "toroidal"})
    assert bool(surgery.notes) == says
    if says:
        assert "learned positions to the embeddings: they stay" in surgery.notes[0]


def test_all_errors_come_in_one_and_nothing_is_done():
    model = language_model("phi")
    before = logits(model, tokens(model, 1, 10))
    with pytest.raises(UserError) as caught:
        replace_attention(model, "toroidal", [0, 1], "random", {"depth": 3, "period": 1, "windw": 2})
    messages = caught.value.messages
    assert len(messages) == 3  # each once, though two layers have it
    assert "Allowed: [1, 2, 4]" in "".join(messages)
    assert logits(model, tokens(model, 1, 10)).equal(before)


def test_unknown_components_and_families():
    model = language_model("llama")
    with pytest.raises(UserError, match="unknown attention replacement 'torodial'; did you mean 'toroidal'"):
        replace_attention(model, "torodial", [0])
    model.config.model_type = "rwkv"
    with pytest.raises(UserError, match="model family 'rwkv' is not known"):
        replace_attention(model, "toroidal", [0])


def test_a_replaced_layer_can_be_replaced_again():
    model = language_model("llama")
    text = tokens(model, 2, 30)
    before = logits(model, text)
    replace_attention(model, "toroidal", [0], options={"depth": 4, "position": "toroidal"})
    assert difference(logits(model, text), before) > 1e-2
    assert replace_attention(model, "standard", [0]).keeps_function
    assert difference(logits(model, text), before) < 1e-5


@each_family
def test_attention_parameters_are_all_of_these_layers(family):
    model = language_model(family)
    replace_attention(model, "toroidal", [1], options={"depth": 2})
    path = architecture_of(model.config.model_type).attention_path(1)
    named = {name: p for name, p in model.named_parameters() if name.startswith(f"{path}.")}
    assert attention_parameters(model, [1]) == named
    assert any(".core." in name for name in named)
    assert attention_parameters(model, []) == {}


def test_thaw_makes_exactly_these_trainable_in_fp32():
    model = language_model("llama").bfloat16()
    model.requires_grad_(True)
    name = "model.layers.0.self_attn.q_proj.weight"
    thaw(model, {name: model.get_parameter(name)})
    for other, parameter in model.named_parameters():
        assert parameter.requires_grad == (other == name)
        assert parameter.dtype == (torch.float32 if other == name else torch.bfloat16)


@pytest.mark.parametrize("length", [1, 7, 20, 50])
@pytest.mark.parametrize(("weight", "depth"), [(0.0, 2), (0.1, 4), (5.0, 1)])
def test_the_range_of_the_bias(length, weight, depth):
    model = language_model("llama")
    options = {"lambda_distance": weight, "depth": depth, "period": 30}
    replace_attention(model, "toroidal", [0, 1], options=options)
    far = max(min(t, 30 - t) / 30 for t in range(length) if t < 30)
    assert bias_range(model, [0, 1], length) == pytest.approx(weight * (far + (depth - 1) / depth), abs=1e-6)


def test_a_bias_that_forbids_has_no_range_and_a_core_without_one_neither():
    model = language_model("llama")
    replace_attention(model, "window", [0], options={"window": 2})
    replace_attention(model, "standard", [1])
    assert bias_range(model, [0], 20) == 0
    assert bias_range(model, [1], 20) is None


class Learned(nn.Module):
    """A core of a user's, with names of its own for what it holds."""

    own_positions = keeps_function = False

    def __init__(self, shape, position: str = "toroidal"):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(shape.num_heads, 1, 1))
        self.position = position
        self.notes = ["has heads that learn: slowly"]

    def forward(self, query, key, value, mask, scaling, query_start, key_start):
        return query + self.bias


def test_a_core_may_hold_what_it_likes_and_says_what_it_offers(monkeypatch):
    ATTENTION.names()  # what comes with the project is registered once and for all
    monkeypatch.setattr(ATTENTION, "_components", dict(ATTENTION._components))
    ATTENTION.register("learned")(Learned)
    model = language_model("gpt2")
    surgery = replace_attention(model, "learned", [0, 1], options={"position": "toroidal"})
    assert surgery.notes == ["gpt2 has heads that learn: slowly"]
    assert bias_range(model, [0, 1], 20) is None
