import json
from statistics import mean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_modules.batches import ModelInput
from lightning_modules.surgery.layer_scores import feature_norm, measure_scores
from lightning_modules.surgery.replaced_attention import replace_attention
from lightning_modules.training.objectives import next_token_nll
from registries import PLACEMENTS
from registries.placements.placement import linears
from tests.rules import language_model, logits, tokens

SCORES = ["gradient", "fisher", "feature_norm"]
FAMILIES = ["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"]


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(7)
    return [{"input_ids": torch.randint(512, (2, 12), generator=generator)} for _ in range(2)]


def mean_loss(model, batch):
    ids = batch["input_ids"]
    return next_token_nll(model, ModelInput(ids), ids) / ids[:, 1:].numel()


def measure(score, model, batches, roles=("attention", "mlp")):
    return measure_scores(score, model, linears(model, roles), batches, mean_loss)


def weight_gradients(model, found, batches):
    """Module -> gradient of the loss for its whole weight, of every block."""
    weights = {linear.module: model.get_submodule(linear.module).weight for linear in found}
    for weight in weights.values():
        weight.requires_grad_(True)
    gradients = {name: [] for name in weights}
    for batch in batches:
        for row in batch["input_ids"]:
            model.zero_grad()
            mean_loss(model, {"input_ids": row[None]}).backward()
            for name, weight in weights.items():
                gradients[name].append(weight.grad.clone())
    model.zero_grad()
    model.requires_grad_(False)
    return gradients


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_gradient_and_fisher_are_those_of_the_whole_weights(family, batches):
    """Over random A, the squared gradient of B is that of the weight times rank / (3 inputs); then per parameter."""
    model = language_model(family, num_layers=1)
    found = linears(model, ["attention", "mlp"])
    draws = {"gradient": [], "fisher": []}
    for score, values in draws.items():
        for seed in range(24):
            torch.manual_seed(seed)
            values.append(measure(score, model, batches))
    gradients = weight_gradients(model, found, batches)
    for linear in found:
        each = gradients[linear.module]
        size = 3 * linear.inputs * (linear.inputs + linear.outputs)
        expected = {
            "gradient": (sum(each) / len(each)).square().sum().item() / size,
            "fisher": mean(one.square().sum().item() for one in each) / size,
        }
        for score, value in expected.items():
            assert mean(draw[linear.module] for draw in draws[score]) == pytest.approx(value, rel=0.15), score


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_feature_norm_is_that_of_random_inputs_over_the_own(family, batches):
    model = language_model(family, num_layers=1)
    found = linears(model, ["attention", "mlp"])
    inputs = {linear.module: [] for linear in found}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, args, output, name=name: inputs[name].append(args[0]))
        for name in inputs
    ]
    for batch in batches:
        logits(model, batch["input_ids"])
    for hook in hooks:
        hook.remove()
    scores = feature_norm(model, found, batches)
    for linear in found:
        weight = model.get_submodule(linear.module).weight
        weight = weight if family == "gpt2" else weight.T  # (inputs, outputs)
        own = torch.cat([each.flatten(0, 1) for each in inputs[linear.module]])
        random = torch.randn(2000, linear.inputs, generator=torch.Generator().manual_seed(99))
        gain = (random @ weight).square().sum().sqrt() / random.square().sum().sqrt()
        expected = gain * own.norm(dim=-1).sum() / (own @ weight).norm(dim=-1).sum()
        assert scores[linear.module] == pytest.approx(expected.item(), rel=0.03)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("score", SCORES)
def test_the_model_stays_as_it_is(score, family, batches):
    model = language_model(family)
    text = tokens(model, 2, 12)
    before, weights = logits(model, text), {name: p.clone() for name, p in model.named_parameters()}
    names = [name for name, _ in model.named_modules()]
    scores = measure(score, model, batches)
    assert set(scores) == {linear.module for linear in linears(model, ["attention", "mlp"])}
    assert all(value > 0 for value in scores.values())
    assert [name for name, _ in model.named_modules()] == names
    assert all(
        p.equal(weights[name]) and p.grad is None and not p.requires_grad for name, p in model.named_parameters()
    )
    assert not any(module._forward_hooks for module in model.modules())
    assert logits(model, text).equal(before)


@pytest.mark.parametrize("score", SCORES)
def test_a_model_after_surgery_is_measured(score, batches):
    model = language_model("llama")
    replace_attention(model, "toroidal", [0])
    assert len(measure(score, model, batches)) == 14


@pytest.mark.parametrize("score", SCORES)
def test_the_same_seed_gives_the_same_scores(score, batches):
    model, found = language_model("llama"), []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(measure(score, model, batches))
    assert found[0] == found[1]


@pytest.mark.parametrize("score", ["gradient", "fisher"])
def test_what_the_loss_does_not_reach_is_worth_nothing(score, batches):
    model = language_model("llama")
    model.get_submodule("model.layers.1.mlp.down_proj").weight.data.zero_()
    scores = measure(score, model, batches, ["mlp"])
    assert scores["model.layers.1.mlp.up_proj"] == scores["model.layers.1.mlp.gate_proj"] == 0
    assert scores["model.layers.1.mlp.down_proj"] > 0


def test_the_gradient_of_all_blocks_is_at_most_the_mean_of_theirs(batches):
    model, found = language_model("llama"), {}
    for score in ("gradient", "fisher"):
        torch.manual_seed(0)
        found[score] = measure(score, model, batches)
    assert all(found["gradient"][name] <= found["fisher"][name] * (1 + 1e-5) for name in found["fisher"])


def test_feature_norm_in_bf16(batches):
    scores = [
        measure("feature_norm", language_model("llama").to(dtype), batches) for dtype in (torch.float32, torch.bfloat16)
    ]
    assert all(scores[1][name] == pytest.approx(value, rel=0.05) for name, value in scores[0].items())


@pytest.mark.parametrize("score", SCORES)
def test_a_study_by_importance(score, run, monkeypatch):
    counted = []

    def measured(name, model, found, batches, loss):
        batches = list(batches)
        counted.append((name, len(batches)))
        return measure_scores(name, model, found, batches, loss)

    monkeypatch.setattr("lightning_modules.load.measure_scores", measured)
    options = [f"placement.score={score}", "placement.budget=9000", "placement.rank=4", "placement.batches=3"]
    folder = run("placement=importance", *options)
    table, result = (
        json.loads((folder / "placement.json").read_text()),
        json.loads((folder / "result.json").read_text()),
    )
    assert counted == [(score, 3)]
    assert 0 < sum(row["parameters"] for row in table["rows"]) == result["metrics"]["params/trainable"] <= 9000
    assert len(table["scores"]) == 14
    assert all(each["score"] > 0 for each in table["scores"])
    assert (folder / "figures" / "importance.png").is_file()


@pytest.mark.parametrize("score", ["gradient", "fisher", "feature_norm"])
def test_a_bf16_model_is_measured(score, batches):
    model = language_model("llama").to(torch.bfloat16)
    scores = measure(score, model, batches, ["attention"])
    assert len(scores) == 4 * model.config.num_hidden_layers and all(value > 0 for value in scores.values())


def test_the_highest_scores_are_taken_whatever_the_size():
    model = language_model("llama")
    candidates = linears(model, ["attention", "mlp"])
    scores = {linear.module: 1.2 if linear.role.startswith("mlp") else 1.0 for linear in candidates}
    budget = sum(linear.row(4, "lora").parameters for linear in candidates if linear.role.startswith("mlp"))
    rows = PLACEMENTS.build("importance", model=model, scores=scores, budget=budget, rank=4)
    assert {row.role.split(".")[0] for row in rows} == {"mlp"}


@given(st.floats(0.05, 2), st.floats(0.05, 1), st.integers(0, 5))
def test_ranks_follow_the_scores_within_the_budget(sharpness, share, seed):
    model = language_model("llama")
    candidates = linears(model, ["attention", "mlp"])
    generator = torch.Generator().manual_seed(seed)
    scores = {linear.module: float(torch.rand((), generator=generator)) for linear in candidates}
    budget = int(share * sum(linear.row(16, "lora").parameters for linear in candidates))
    rows = PLACEMENTS.build("importance", model=model, scores=scores, budget=budget, sharpness=sharpness)
    assert sum(row.parameters for row in rows) <= budget
    ranks = {row.module: row.rank for row in rows}
    order = sorted((linear for linear in candidates if linear.max_rank == 64), key=lambda each: scores[each.module])
    assert (found := [ranks.get(linear.module, 0) for linear in order]) == sorted(found)


def test_without_sharpness_all_layers_get_the_same():
    model = language_model("llama")
    scores = {linear.module: 1.0 + index for index, linear in enumerate(linears(model, ["attention", "mlp"]))}
    options = {"model": model, "budget": "50%"}
    expected = PLACEMENTS.build("all_linear", **options)
    assert PLACEMENTS.build("importance", scores=scores, sharpness=1e-6, **options) == expected


def test_layers_with_low_scores_are_left_out():
    model = language_model("llama")
    candidates = linears(model, ["attention", "mlp"])
    scores = {linear.module: 1.0 if "mlp" in linear.role else 1e-9 for linear in candidates}
    rows = PLACEMENTS.build("importance", model=model, scores=scores, budget="10%", sharpness=1.0)
    assert {row.role.partition(".")[0] for row in rows} == {"mlp"}
