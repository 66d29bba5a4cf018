import copy

import pytest
import torch

from lightning_modules.training.trainer import fit
from registries import UserError
from registries.architectures import architecture_of, resolve_roles
from tests.rules import difference, disturb_cores, logits, tokens

FAMILIES = ["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"]
each_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def begin(make_module, make_stage):
    """A module with toroidal layers, what its logits were, and the LoRA stage that has begun."""

    def begin(
        family="llama", replaced=(0, 1), dtype=torch.float32, num_layers=2, replacement="toroidal", drawn=False, **keys
    ):
        module = make_module(replacement, family, replaced, dtype=dtype, num_layers=num_layers)
        disturb_cores(module.model)
        before = logits(module.model, tokens(module.model, 2, 12))
        stage = make_stage(module, "lora", **{"layers": "replaced" if replacement else "all", **keys})
        module.begin("lora", stage)
        if drawn:
            draw(stage.parameters(module.model))
        stage.start(module.model)
        return module, stage, before

    return begin


def draw(parameters):
    """Additions that matter: at the start they are 0."""
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters.values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2


def linear_layers(model, roles, layers):
    architecture = architecture_of(model.config.model_type)
    paths = [architecture.roles[role] for role in resolve_roles(architecture, roles)]
    return {f"{architecture.blocks}.{layer}.{path}" for layer in layers for path in paths}


def adapted(parameters):
    return {name.rpartition(".lora_")[0] for name in parameters}


def loss_of(begun):
    module, stage, _ = begun
    return stage.loss(module.model, {"input_ids": tokens(module.model, 2, 12)})[0].item()


# At step 0


@each_family
@pytest.mark.parametrize("replacement", ["toroidal", None])
def test_at_step_0_it_changes_nothing(replacement, family, begin):
    module, _, before = begin(family, replacement=replacement, roles=["attention", "mlp"])
    assert difference(logits(module.model, tokens(module.model, 2, 12)), before) < 1e-5


@each_family
def test_the_original_is_not_touched(family, begin):
    module, _, _ = begin(family, roles=["attention", "mlp"], drawn=True)
    assert not any("lora" in name for name, _ in module.original.named_modules())


# What trains


@each_family
@pytest.mark.parametrize("roles", [["attention"], ["mlp"], ["attention.output", "mlp.up"], ["mlp.down", "attention"]])
def test_exactly_the_additions_to_the_roles_train(roles, family, begin):
    module, stage, _ = begin(family, roles=roles)
    parameters = stage.parameters(module.model)
    targets = linear_layers(module.model, roles, [0, 1])
    assert set(parameters) == {f"{path}.lora_{side}.recovery.weight" for path in targets for side in "AB"}
    assert set(module.trained_parameters()) == set(parameters)
    draw(parameters)
    stage.loss(module.model, {"input_ids": tokens(module.model, 2, 12)})[0].backward()
    everything = dict(module.model.named_parameters())
    assert {name for name, parameter in everything.items() if parameter.grad is not None} == set(parameters)
    assert all(parameter.grad.abs().max() > 0 for parameter in parameters.values())


@pytest.mark.each_value
@each_family
@pytest.mark.parametrize(
    ("layers", "expected"), [("replaced", [1, 2]), ("all", [0, 1, 2, 3]), ("last:1", [3]), ([0, 3], [0, 3]), (-1, [3])]
)
def test_the_layers(layers, expected, family, begin):
    module, stage, _ = begin(family, [1, 2], num_layers=4, layers=layers)
    assert adapted(stage.parameters(module.model)) == linear_layers(module.model, ["attention"], expected)


def test_many_layers(begin):
    """Numbers of which one begins or ends another, and more than PEFT looks through one by one."""
    module, stage, _ = begin("llama", [1, 2, 11, 12], num_layers=13, roles=["attention", "mlp"])
    expected = linear_layers(module.model, ["attention", "mlp"], [1, 2, 11, 12])
    assert len(expected) > 20
    assert adapted(stage.parameters(module.model)) == expected


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_step_changes_the_additions_and_nothing_else(
    family, make_module, make_stage, loader, blocks, trainer_options, tmp_path
):
    module = make_module("toroidal", family)
    stage = make_stage(module, "lora", steps=2)
    module.begin("lora", stage)
    before = {name: parameter.detach().clone() for name, parameter in module.model.named_parameters()}
    fit(module, loader(blocks, 4), loader(blocks), trainer_options, tmp_path / "lora")
    changed = {name for name, parameter in module.model.named_parameters() if not parameter.equal(before[name])}
    assert changed == set(stage.parameters(module.model))


@pytest.mark.each_value
@each_family
@pytest.mark.parametrize("objective", ["next_token", "kl"])
def test_it_learns(objective, family, begin):
    module, stage, _ = begin(family, objective=objective, rank=4)
    text = tokens(module.model, 4, 12)
    optimizer = torch.optim.AdamW(stage.parameters(module.model).values(), lr=2e-2)
    losses = []
    for _ in range(15):
        loss, count, _ = stage.loss(module.model, {"input_ids": text})
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_without_a_replacement_it_is_fine_tuning(begin):
    module, stage, _ = begin(replacement=None, layers=[1])
    assert adapted(stage.parameters(module.model)) == linear_layers(module.model, ["attention"], [1])
    assert stage.loss(module.model, {"input_ids": tokens(module.model, 2, 12)})[0].requires_grad


def test_a_role_that_the_family_does_not_have_is_an_error(begin):
    with pytest.raises(UserError, match="attention.query.*none of this model's"):
        begin("gpt2", roles=["attention.query"])


# What is added


@pytest.mark.each_value
@each_family
@pytest.mark.parametrize(("rank", "alpha"), [(1, 16.0), (4, 2.0), (8, 16.0)])
def test_what_is_added_is_alpha_over_rank_times_the_product(rank, alpha, family, begin):
    """As if it were merged into the weights, which a Conv1D of GPT-2 has turned."""
    module, stage, before = begin(family, rank=rank, alpha=alpha, roles=["attention", "mlp"], drawn=True)
    module.model.double()  # what is drawn is large, and so are its rounding errors
    text = tokens(module.model, 2, 12)
    found = logits(module.model, text)
    assert difference(found, before) > 1e-3
    merged = copy.deepcopy(module.model)
    for path in adapted(stage.parameters(merged)):
        layer = merged.get_submodule(path)
        a, b = layer.lora_A["recovery"].weight, layer.lora_B["recovery"].weight
        assert a.shape[0] == b.shape[1] == rank
        product = alpha / rank * b @ a
        layer.base_layer.weight.data += product.T if family == "gpt2" else product
        a.data.zero_()
    assert difference(logits(merged, text), found) < 1e-5


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"alpha": 16.0}, {"alpha": 8.0}),
        ({"rank": 4}, {"rank": 8}),
        ({"roles": ["attention"]}, {"roles": ["attention.value"]}),
        ({"layers": "replaced"}, {"layers": [1]}),
        ({"objective": "next_token"}, {"objective": "kl"}),
    ],
)
def test_every_option_has_an_effect(one, other, begin):
    assert loss_of(begin(drawn=True, **one)) != pytest.approx(loss_of(begin(drawn=True, **other)), rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_dropout_acts_in_training(family, make_module, make_stage, loader, blocks, trainer_options, tmp_path):
    """Two steps with another dropout, and all else the same, train other weights."""
    trained = []
    for dropout in (0.0, 0.5):
        module = make_module("toroidal", family)
        stage = make_stage(module, "lora", steps=2, dropout=dropout)
        module.begin("lora", stage)
        draw(stage.parameters(module.model))
        fit(module, loader(blocks, 4), loader(blocks), trainer_options, tmp_path / f"dropout {dropout}")
        trained.append(stage.parameters(module.model))
    assert any(not trained[0][name].allclose(trained[1][name]) for name in trained[0])


def test_dropout_does_not_act_in_evaluation(begin):
    module, _, _ = begin(dropout=0.5, drawn=True)
    module.model.eval()
    text = tokens(module.model, 2, 12)
    assert logits(module.model, text).equal(logits(module.model, text))


def test_the_layers_that_dropout_is_added_to_drop_in_training_mode(begin):
    module, stage, _ = begin(dropout=0.5, drawn=True)
    text = tokens(module.model, 2, 12)
    expected = logits(module.model, text)
    for path in adapted(stage.parameters(module.model)):
        module.model.get_submodule(path).lora_dropout.train()
    assert difference(logits(module.model, text), expected) > 1e-3


# In a bf16 model


@each_family
@pytest.mark.parametrize("layers", ["replaced", "all"])
def test_it_works_in_a_bf16_model(layers, family, begin):
    """Also where the layers below do not train: their hidden states are bf16, the additions fp32."""
    module, stage, before = begin(family, [1], dtype=torch.bfloat16, layers=layers, roles=["attention", "mlp"])
    parameters = stage.parameters(module.model)
    assert all(parameter.dtype == torch.float32 for parameter in parameters.values())
    found = logits(module.model, tokens(module.model, 2, 12))
    assert found.dtype == torch.bfloat16
    assert difference(found.float(), before.float()) < 1e-5
    draw(parameters)
    loss, *_ = stage.loss(module.model, {"input_ids": tokens(module.model, 2, 12)})
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in parameters.values())
    assert all(parameter.grad.abs().max() > 0 for parameter in parameters.values())
    rest = [parameter for name, parameter in module.model.named_parameters() if name not in parameters]
    assert all(parameter.dtype == torch.bfloat16 for parameter in rest)


# Before and after other stages


def test_a_later_stage_trains_the_additions_with_the_layer(begin, make_stage):
    module, _, _ = begin(replaced=[1])
    later = make_stage(module, "next_token")
    module.begin("next_token", later)
    assert any(".lora_A.recovery." in name for name in module.trained_parameters())
    assert all(name.startswith("model.layers.1.self_attn.") for name in module.trained_parameters())


@each_family
def test_it_follows_a_stage_that_trained_the_layer(family, make_module, make_stage):
    """In a bf16 model, whose replaced layer has become fp32."""
    module = make_module("toroidal", family, [1], dtype=torch.bfloat16)
    module.begin("transfer", make_stage(module, "transfer"))
    before = logits(module.model, tokens(module.model, 2, 12))
    stage = make_stage(module, "lora")
    module.begin("lora", stage)
    stage.start(module.model)
    text = tokens(module.model, 2, 12)
    assert difference(logits(module.model, text).float(), before.float()) < 1e-5
    stage.loss(module.model, {"input_ids": text})[0].backward()
    assert all(parameter.grad is not None for parameter in stage.parameters(module.model).values())
