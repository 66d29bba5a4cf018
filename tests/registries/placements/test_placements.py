import json
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3TextConfig, GPT2Config

import train
from lightning_modules.surgery.lora import lora_parameters, place_lora
from registries import MODELS, PLACEMENTS, UserError
from registries.architectures import architecture_of
from registries.model_shape import linear_sizes, shape_of
from registries.placements.placement import Linear, linears
from registries.placements.ranks import ranked

CONFIGS = Path(train.__file__).parent / "registries" / "models" / "configs"
FAMILIES = ["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"]
VARIANTS = ["lora", "rslora", "dora"]
PARTS = [
    {"roles": ["attention", "mlp"], "layers": "all", "rank": 4},
    {"roles": ["mlp"], "layers": "last:50%", "rank": 6},
]

ATTENTION = {"attention.query", "attention.key", "attention.value", "attention.qkv", "attention.output"}
MLP = {"mlp.gate", "mlp.up", "mlp.down"}
ROLES = {
    "all_linear": ATTENTION | MLP,
    "attention": ATTENTION,
    "feed_forward": MLP,
    "attention_output": {"attention.output"},
    "query_value": {"attention.query", "attention.value", "attention.qkv"},
}


def config_of(name):
    if name == "gemma3_270m":
        return Gemma3TextConfig(
            hidden_size=640,
            intermediate_size=2048,
            num_hidden_layers=18,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=256,
        )
    if name in FAMILIES:
        grouped = None if name in ("gpt2", "gpt_neox") else 2
        dimensions = dict(MODELS.build("random", family=name, num_layers=3, num_kv_heads=grouped).config())
        return AutoConfig.for_model(dimensions.pop("model_type"), **dimensions)
    raw = json.loads((CONFIGS / f"{name}.json").read_text())
    return AutoConfig.for_model(raw.pop("model_type"), **raw)


def meta_model(config):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@cache
def stand_in(name):
    return SimpleNamespace(config=config_of(name))


def build(name, model, **options):
    needed = {"hybrid": {"parts": PARTS}, "suffix": {"suffixes": ["mlp"]}}
    return PLACEMENTS.build(name, model=model, **{**needed.get(name, {}), **options})


def total(rows):
    return sum(row.parameters for row in rows)


def compose(*overrides):
    return train.compose(["model=random", *overrides])


# The sizes of a model


@pytest.fixture(scope="module")
def gpt2_medium():
    return meta_model(GPT2Config(n_layer=24, n_embd=1024, n_head=16))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("suffix", {"suffixes": ["c_attn", "c_proj", "c_fc"], "allow_ambiguous": True}, 6_291_456),
        ("suffix", {"suffixes": ["c_fc"]}, 1_966_080),
        ("suffix", {"suffixes": ["c_attn", "c_proj"], "allow_ambiguous": True}, 4_325_376),
        ("attention", {}, 2_359_296),
        ("feed_forward", {}, 3_932_160),
        ("all_linear", {}, 6_291_456),
    ],
)
def test_known_numbers_of_parameters(name, options, expected, gpt2_medium):
    rows = PLACEMENTS.build(name, model=gpt2_medium, rank=16, **options)
    assert total(rows) == expected
    model = meta_model(gpt2_medium.config)
    place_lora(model, rows)
    assert sum(parameter.numel() for parameter in lora_parameters(model).values()) == expected
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == expected


@pytest.mark.parametrize("name", ["phi2", "llama31_8b", "mistral_7b", "smollm2_135m", "gemma3_270m", *FAMILIES])
def test_every_placement_names_the_modules_of_its_roles(name):
    model = meta_model(config_of(name))
    shape = shape_of(model.config)
    architecture, modules = architecture_of(shape.family), dict(model.named_modules())
    for placement, roles in ROLES.items():
        rows = PLACEMENTS.build(placement, model=model, rank=4)
        own = [role for role in architecture.roles if role in roles]
        assert [(row.layer, row.role) for row in rows] == [
            (layer, role) for layer in range(shape.num_layers) for role in own
        ]
        for row in rows:
            assert row.module == f"{architecture.blocks}.{row.layer}.{architecture.roles[row.role]}"
            assert row.parameters == row.rank * sum(modules[row.module].weight.shape)
    for role, (inputs, outputs) in linear_sizes(shape).items():
        module = modules[f"{architecture.blocks}.0.{architecture.roles[role]}"]
        turned = type(module).__name__ == "Conv1D"
        assert tuple(module.weight.shape) == ((inputs, outputs) if turned else (outputs, inputs))


@pytest.mark.parametrize("name", ["phi2", "llama31_8b", "gemma3_270m", *FAMILIES])
def test_all_linear_layers_of_the_blocks_have_roles(name):
    model = meta_model(config_of(name))
    blocks = architecture_of(shape_of(model.config).family).blocks
    present = {
        path
        for path, module in model.named_modules()
        if path.startswith(f"{blocks}.") and type(module).__name__ in ("Linear", "Conv1D")
    }
    assert {row.module for row in PLACEMENTS.build("all_linear", model=model, rank=1)} == present


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_table_counts_what_is_injected(variant, family):
    model = meta_model(config_of(family))
    rows = build("hybrid", model, variant=variant)
    place_lora(model, rows, variant=variant)
    found = lora_parameters(model)
    for row in rows:
        assert row.parameters == sum(p.numel() for name, p in found.items() if name.startswith(f"{row.module}.lora_"))
        assert model.get_submodule(row.module).lora_A["default"].weight.shape[0] == row.rank
    assert total(rows) == sum(parameter.numel() for parameter in found.values())


# Roles, layers and ranks


def test_fewer_roles_and_layers():
    rows = PLACEMENTS.build("attention", model=stand_in("llama"), roles=["attention.value"], layers=[0, 2], rank=3)
    assert [(row.module, row.rank) for row in rows] == [(f"model.layers.{n}.self_attn.v_proj", 3) for n in (0, 2)]


def test_a_later_part_overrides_an_earlier_one():
    rows = build("hybrid", stand_in("llama"))
    assert {(row.role.split(".")[0], row.layer): row.rank for row in rows} == {
        **{("attention", layer): 4 for layer in range(3)},
        **{("mlp", 0): 4, ("mlp", 1): 6, ("mlp", 2): 6},
    }
    assert len({row.module for row in rows}) == len(rows)
    assert [row.layer for row in rows] == sorted(row.layer for row in rows)


def test_suffixes_match_whole_parts_of_names():
    with pytest.raises(UserError, match="'proj' ends no linear layer"):
        PLACEMENTS.build("suffix", model=stand_in("gpt2"), suffixes=["proj"])
    rows = PLACEMENTS.build("suffix", model=stand_in("gpt2"), suffixes=["attn.c_proj"])
    assert {row.role for row in rows} == {"attention.output"}


# Budgets


@pytest.mark.each_value
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [*ROLES, "hybrid", "suffix"])
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_a_budget_is_met_within_one_step_and_never_exceeded(name, family, data):
    model, variant = stand_in(family), data.draw(st.sampled_from(VARIANTS))
    options = {"variant": variant}
    if name == "suffix":
        architecture = architecture_of(shape_of(model.config).family)
        options |= {"suffixes": [architecture.roles["mlp.up"], architecture.roles["attention.output"]]}
    budget = data.draw(st.integers(1, 700_000))
    try:
        rows = build(name, model, budget=budget, **options)
    except UserError as error:
        nearest = int(re.search(r"nearest is placement\.budget=(\d+)", str(error))[1])
        assert total(build(name, model, budget=nearest, **options)) == nearest
        beyond = nearest - 1 if budget < nearest else nearest + 1
        with pytest.raises(UserError, match="cannot be met"):
            build(name, model, budget=beyond, **options)
        return
    sizes = linear_sizes(shape_of(model.config))
    assert total(rows) <= budget
    assert all(1 <= row.rank <= min(sizes[row.role]) for row in rows)
    growing = sum(sum(sizes[row.role]) for row in rows if row.rank < min(sizes[row.role]))
    assert not growing or budget < total(rows) + growing


@pytest.mark.parametrize(("share", "rank"), [("100%", 16), ("50%", 8), ("6.25%", 1), ("150%", 24)])
def test_a_share_is_of_all_linear_layers_at_rank_16(share, rank, gpt2_medium):
    """Per layer and rank: 1024 + 3072 (queries, keys, values), 2 * 1024 (output) and twice 1024 + 4096 (the MLP)."""
    expected = 24 * rank * (4096 + 2048 + 2 * 5120)
    rows = PLACEMENTS.build("all_linear", model=gpt2_medium, budget=share)
    assert {row.rank for row in rows} == {rank} and total(rows) == expected
    for placement in ("attention", "feed_forward"):  # of as many parameters, not of their own layers
        rows = PLACEMENTS.build(placement, model=gpt2_medium, budget=share)
        per_rank = sum(row.parameters // row.rank for row in rows)
        assert expected - per_rank < total(rows) <= expected


@pytest.mark.parametrize("share", ["50", "%", "-5%", "5e1%", "half", "\u0665%"])
def test_what_is_no_share(share, gpt2_medium):
    with pytest.raises(UserError, match="budget="):
        PLACEMENTS.build("all_linear", model=gpt2_medium, budget=share)


@given(
    weights=st.lists(st.integers(1, 64), min_size=1, max_size=4),
    budget=st.integers(1, 60_000),
    variant=st.sampled_from(VARIANTS),
)
@settings(max_examples=100, deadline=None)
def test_a_budget_takes_the_largest_common_factor(weights, budget, variant):
    candidates = [Linear(f"m{i}", "mlp.up", i, 64, 96, float(weight)) for i, weight in enumerate(weights)]

    def at(factor):
        return [max(1, min(64, int(factor * weight + 1e-9))) for weight in weights]

    def cost(ranks):
        return sum(candidate.row(rank, variant).parameters for candidate, rank in zip(candidates, ranks, strict=True))

    possible = [at(step / weight) for weight in set(weights) for step in range(1, 65)]
    fitting = [ranks for ranks in possible if cost(ranks) <= budget]
    if not fitting or budget > max(map(cost, possible)):
        with pytest.raises(UserError, match="cannot be met"):
            ranked(candidates, 1, budget, variant)
    else:
        assert cost([row.rank for row in ranked(candidates, 1, budget, variant)]) == max(map(cost, fitting))


@given(budget=st.integers(1, 200_000), rank=st.integers(1, 32), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_importance_keeps_to_its_budget_and_leaves_no_room(budget, rank, seed):
    model = stand_in("llama")
    everything = PLACEMENTS.build("all_linear", model=model, rank=rank)
    generator = torch.Generator().manual_seed(seed)
    scores = {row.module: torch.rand((), generator=generator).item() for row in everything}
    if not min(row.parameters for row in everything) <= budget <= total(everything):
        with pytest.raises(UserError, match=r"placement.budget=.*cannot be met.*nearest"):
            PLACEMENTS.build("importance", model=model, scores=scores, budget=budget, rank=rank)
        return
    rows = PLACEMENTS.build("importance", model=model, scores=scores, budget=budget, rank=rank)
    assert total(rows) <= budget
    left = set(everything) - set(rows)
    assert all(row.parameters > budget - total(rows) for row in left)


def test_importance_takes_the_highest_scores():
    model = stand_in("llama")
    candidates = linears(model, ["mlp.up"])
    scores = {linear.module: float(linear.layer == 1) + 0.1 for linear in candidates}
    rows = PLACEMENTS.build(
        "importance",
        model=model,
        scores=scores,
        roles=["mlp.up"],
        budget=candidates[0].row(4, "lora").parameters,
        rank=4,
    )
    assert [row.layer for row in rows] == [1]


# What is wrong is told before any weights are read


@pytest.fixture
def no_weights(monkeypatch):
    def model(self, dtype):
        raise AssertionError("weights were read")

    monkeypatch.setattr("registries.models.random.RandomModel.model", model)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.family=gpt2", "placement=attention", "placement.roles=[attention.query]"], "attention.query.*Allowed"),
        (["placement=attention", "placement.roles=[mlp]"], r"mlp.*is none of this placement's roles.*Allowed"),
        (["placement=attention", "placement.layers=[7]"], r"layers=\[7\].*0 to 1"),
        (["placement=attention", "placement.rank=65"], "rank=65 is above the width .*1 to (32|64)"),
        (["placement=attention", "placement.rank=0"], "rank=0.*greater than or equal to 1"),
        (["placement=attention", "placement.budget=10"], "budget=10 cannot be met.*nearest is placement.budget=1024"),
        (["placement=attention", "placement.budget=1000000"], "budget=1,000,000 cannot be met.*budget=65536"),
        (["placement=attention", "placement.init=pisa"], "init='pisa'.*pissa"),
        (["placement=attention", "placement.variant=qlora"], "variant='qlora'.*dora"),
        (["placement=attention", "placement.dropout=1"], "dropout=1.*less than 1"),
        (["placement=attention", "placement.alpha=0"], "alpha=0.*greater than 0"),
        (["placement=attention", "placement.init=pissa", "model.dtype=bfloat16"], "pissa.*model.dtype=float32"),
        (["placement=suffix"], "placement.suffixes needs a value"),
        (["placement=suffix", "placement.suffixes=[c_attn]"], "'c_attn' ends no linear layer.*q_proj"),
        (["model.family=gpt2", "placement=suffix", "placement.suffixes=[c_proj]"], "several roles.*attn.c_proj"),
        (["placement=importance"], "placement.budget needs a value"),
        (["placement=importance", "placement.budget=10"], "budget=10 cannot be met.*budget=128"),
        (["placement=importance", "placement.budget=9000", "placement.score=x"], "score='x'.*fisher"),
        (["placement=hybrid", "placement.parts=[]"], "parts.*at least 1"),
        (["placement=hybrid", "placement.parts=[mlp]"], "parts.*dictionary"),
        (["placement=hybrid", "placement.parts=[{roles: [mlp], layers: all}]"], r"parts\[0\] needs a value for 'rank'"),
        (
            ["placement=hybrid", "placement.parts=[{roles: [mlp], layers: all, rank: 4, alpha: 3}]"],
            r"parts\[0\] has no key 'alpha'. Allowed: roles, layers, rank",
        ),
        (["placement=hybrid", "placement.parts=[{roles: [mlpp], layers: all, rank: 4}]"], "'mlpp'.*mlp.up"),
        (["placement=hybrid", "placement.budget=5"], "budget=5 cannot be met.*nearest"),
        (["placement=atention"], "did you mean 'attention'"),
        (["placement=attention", "recovery=[lora]"], "second time"),
    ],
    ids=str,
)
def test_what_is_wrong_is_told(overrides, expected, no_weights):
    with pytest.raises(UserError, match=expected):
        compose(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"placement={name}"] for name in ("none", *ROLES, "hybrid")),
        ["placement=importance", "placement.budget=9000"],
        ["placement=suffix", "placement.suffixes=[q_proj,v_proj]"],
    ],
    ids=str,
)
def test_what_is_right_is_composed(overrides, no_weights):
    compose(*overrides)
