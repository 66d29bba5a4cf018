import json
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from registries import MODELS
from registries.architectures import ARCHITECTURES, architecture_of, modules_of_roles, resolve_roles
from registries.model_shape import shape_of
from registries.models.pretrained import CONFIGS
from registries.models.random import Family
from registries.registry import UserError

FAMILIES = get_args(Family)
each_family = pytest.mark.parametrize("family", FAMILIES)


def source(family, **dimensions):
    return MODELS.build("random", family=family, num_layers=2, **dimensions)


@each_family
def test_every_role_is_played_by_a_linear_layer(family):
    model = source(family).model(torch.float32)
    architecture = architecture_of(model.config.model_type)
    blocks = model.get_submodule(architecture.blocks)
    assert len(blocks) == 2
    for block in blocks:
        modules = [block.get_submodule(path) for path in architecture.roles.values()]
        assert all(isinstance(module, (nn.Linear, Conv1D)) for module in modules)
        linears = {module for module in block.modules() if isinstance(module, (nn.Linear, Conv1D))}
        assert set(modules) == linears  # none without a role
        attention = set(block.get_submodule(architecture.attention).modules())
        for role, path in architecture.roles.items():
            assert (block.get_submodule(path) in attention) == role.startswith("attention.")


@each_family
def test_attention_layers_are_found_by_number_and_by_path(family):
    model = source(family).model(torch.float32)
    architecture = architecture_of(model.config.model_type)
    for index, layer in enumerate(architecture.attention_layers(model)):
        assert layer.layer_idx == index
        assert model.get_submodule(architecture.attention_path(index)) is layer


@each_family
def test_roles_have_the_names_of_the_project(family):
    model_type = source(family).config()["model_type"]
    known = {f"attention.{part}" for part in ("query", "key", "value", "qkv", "output")}
    known |= {f"mlp.{part}" for part in ("gate", "up", "down")}
    assert set(architecture_of(model_type).roles) <= known


@each_family
@pytest.mark.parametrize("num_layers", [2, 7])
def test_the_shape_is_the_same_from_every_form_of_the_config(family, num_layers, tmp_path):
    random = MODELS.build("random", family=family, num_layers=num_layers, hidden_size=48, num_heads=4, vocab_size=300)
    config = random.model(torch.float32).config
    config.save_pretrained(tmp_path)
    shape = shape_of(config)
    assert shape_of(json.loads((tmp_path / "config.json").read_text())) == shape
    assert shape_of(random.config()) == shape
    assert (shape.num_layers, shape.hidden_size, shape.num_heads, shape.head_width) == (num_layers, 48, 4, 12)
    assert (shape.vocab_size, shape.max_positions, len(shape.rotary_bases)) == (300, 2048, num_layers)


@each_family
def test_the_rotary_width_is_the_models(family):
    """Channels that the rotary code leaves alone are the same at two positions."""
    model = source(family).model(torch.float32)
    attention = shape_of(model.config).attention(0)
    rotary = [module for name, module in model.named_modules() if name.endswith("rotary_emb")]
    assert bool(rotary) == bool(attention.rotary_width)
    if rotary:
        layer_type = {"layer_type": "sliding_attention"} if family == "gemma3" else {}
        cos, _ = rotary[0](torch.zeros(1, 2, 64), torch.tensor([[0, 1]]), **layer_type)
        assert cos.shape[-1] == attention.rotary_width
        frequencies = [attention.rotary_base ** (-2 * m / attention.rotary_width) for m in range(cos.shape[-1] // 2)]
        torch.testing.assert_close(cos[0, 1], torch.tensor([*frequencies, *frequencies]).cos())


def test_grouped_heads():
    shape = shape_of(source("llama", num_kv_heads=2).config())
    assert (shape.num_kv_heads, shape.attention(1).num_kv_heads) == (2, 2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("phi2", ("phi", 32, 2560, 32, 32, 80, 32, 2048)),
        ("dialogpt_medium", ("gpt2", 24, 1024, 16, 16, 64, 0, 1024)),
        ("llama31_8b", ("llama", 32, 4096, 32, 8, 128, 128, 131_072)),
        ("mistral_7b", ("mistral", 32, 4096, 32, 8, 128, 128, 32_768)),
        ("smollm2_135m", ("llama", 30, 576, 9, 3, 64, 64, 8192)),
    ],
)
def test_packaged_configs(name, expected):
    shape = shape_of(json.loads((CONFIGS / f"{name}.json").read_text()))
    assert (
        shape.family, shape.num_layers, shape.hidden_size, shape.num_heads, shape.num_kv_heads, shape.head_width,
        shape.rotary_width, shape.max_positions,
    ) == expected  # fmt: skip


def test_every_packaged_config_belongs_to_a_model():
    assert {file.stem for file in CONFIGS.glob("*.json")} <= set(MODELS.names())


def test_older_spellings_of_rotary_keys():
    llama = {
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 300,
        "max_position_embeddings": 128, "rope_theta": 500_000.0,
    }  # fmt: skip
    assert shape_of(llama).rotary_bases == (500_000.0, 500_000.0)
    del llama["rope_theta"]
    neox = {**llama, "model_type": "gpt_neox", "rotary_pct": 0.5, "rotary_emb_base": 20_000}
    assert (shape_of(neox).rotary_width, shape_of(neox).rotary_bases[0]) == (8, 20_000.0)
    assert shape_of({**llama, "model_type": "phi", "partial_rotary_factor": 0.25}).rotary_width == 4
    assert shape_of({**llama, "model_type": "phi"}).rotary_width == 8
    assert shape_of({"text_config": llama, "model_type": "other"}) == shape_of(llama)


def test_a_lacking_key_is_named():
    with pytest.raises(UserError, match="'gpt2' model has no key 'n_head'"):
        shape_of({"model_type": "gpt2", "n_layer": 2})


@pytest.mark.parametrize("config", [{"model_type": "mamba"}, {}])
def test_an_unknown_family_says_how_to_add_it(config):
    with pytest.raises(UserError, match=r"is not known. Known: .*gpt_neox.*ARCHITECTURES.register\(.*plugins=\["):
        shape_of(config)


def test_every_family_of_the_random_model_is_known():
    assert {source(family).config()["model_type"] for family in FAMILIES} <= set(ARCHITECTURES.names())


WITH_ROLES = [name for name in ARCHITECTURES.names() if ARCHITECTURES.get(name).roles]
LLAMA, FUSED = ARCHITECTURES.get("llama"), ARCHITECTURES.get("gpt_neox")
ATTENTION_ROLES = [f"attention.{part}" for part in ("query", "key", "value", "output")]


@pytest.mark.parametrize(
    ("architecture", "roles", "expected"),
    [
        (LLAMA, ["attention"], ATTENTION_ROLES),
        (LLAMA, ["mlp"], ["mlp.gate", "mlp.up", "mlp.down"]),
        (LLAMA, ["attention.value", "attention.query"], ["attention.query", "attention.value"]),
        (LLAMA, ["mlp.up", "attention"], [*ATTENTION_ROLES, "mlp.up"]),
        (LLAMA, ["attention", "attention.key"], ATTENTION_ROLES),
        (FUSED, ["attention"], ["attention.qkv", "attention.output"]),
        (FUSED, ["attention.qkv"], ["attention.qkv"]),
        (FUSED, ["mlp"], ["mlp.up", "mlp.down"]),
    ],
    ids=str,
)
def test_roles_by_name_and_by_prefix(architecture, roles, expected):
    assert resolve_roles(architecture, roles) == expected


@pytest.mark.parametrize("model_type", WITH_ROLES)
def test_attention_and_mlp_are_all_there_is(model_type):
    architecture = architecture_of(model_type)
    assert resolve_roles(architecture, ["mlp", "attention"]) == list(architecture.roles)


@given(
    st.sampled_from(WITH_ROLES).flatmap(
        lambda name: st.tuples(st.just(name), st.lists(st.sampled_from(list(ARCHITECTURES.get(name).roles))))
    )
)
def test_roles_come_once_and_in_the_familys_order(chosen):
    model_type, roles = chosen
    architecture = architecture_of(model_type)
    assert resolve_roles(architecture, roles) == [role for role in architecture.roles if role in roles]


@pytest.mark.parametrize(
    ("architecture", "role", "near"),
    [
        (LLAMA, "mlp.gat", "; did you mean 'mlp.gate'?"),
        (LLAMA, "attention.qkv", "; did you mean 'attention.key'?"),
        (FUSED, "attention.query", "; did you mean 'attention.qkv'?"),
        (FUSED, "mlp.gate", None),
        (LLAMA, "att", None),  # half a word is no prefix
        (LLAMA, "mlp.", None),
        (LLAMA, "", None),
    ],
)
def test_a_role_that_the_family_does_not_have(architecture, role, near):
    with pytest.raises(UserError, match=f"role {role!r} is none of this model's") as caught:
        resolve_roles(architecture, ["attention.output", role])
    assert near is None or near in str(caught.value)
    assert str(caught.value).endswith(f"Allowed: {', '.join(architecture.roles)}")


@each_family
@pytest.mark.parametrize("roles", [["attention"], ["mlp.up"], ["mlp", "attention.output"]], ids=str)
def test_modules_of_roles_are_the_linear_layers_of_these_layers(family, roles):
    model = source(family).model(torch.float32)
    architecture = architecture_of(model.config.model_type)
    names = modules_of_roles(architecture, roles, [1])
    assert len(names) == len(resolve_roles(architecture, roles)) == len(set(names))
    block = set(model.get_submodule(f"{architecture.blocks}.1").modules())
    for module in map(model.get_submodule, names):
        assert isinstance(module, (nn.Linear, Conv1D))
        assert module in block
    assert modules_of_roles(architecture, roles, [0, 1]) == modules_of_roles(architecture, roles, [0]) + names


def test_modules_of_roles_have_full_names():
    assert modules_of_roles(FUSED, ["attention"], [3]) == [
        "gpt_neox.layers.3.attention.query_key_value",
        "gpt_neox.layers.3.attention.dense",
    ]
    assert modules_of_roles(FUSED, ["attention"], []) == []


# What a config says


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 128),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 128),
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 64}}, 64),
        ({"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 32}, 32),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {}}}, 128),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, None),
        ({"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 64}}, None),
        ({"rope_scaling": None}, None),
    ],
)
def test_rotary_codes_that_follow_the_length_of_a_text_limit_it(rope, limit):
    shape = shape_of({**source("llama", max_positions=128).config(), **rope})
    assert (shape.limit.tokens if shape.limit else None) == limit


def test_learned_positions_limit_a_text():
    limit = shape_of(source("gpt2", max_positions=77).config()).limit
    assert (limit.tokens, limit.words) == (77, "the 77 positions that this model learned")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"hidden_size": "64"}, "hidden_size: '64'"),
        ({"num_attention_heads": 0}, "num_attention_heads: 0"),
        ({"vocab_size": [512]}, "vocab_size: .512."),
        ({"rope_parameters": "default"}, "rope_parameters: 'default'"),
        ({"rope_parameters": {"rope_theta": "much"}}, "rope_theta: 'much'"),
        ({"text_config": 5}, "text_config: 5"),
    ],
)
def test_a_wrong_value_in_a_config_is_told(wrong, told):
    with pytest.raises(UserError, match=told):
        shape_of({**source("llama").config(), **wrong})


def test_older_configs_of_gemma_3_mix_two_rotary_bases():
    older = {
        "model_type": "gemma3_text", "num_hidden_layers": 4, "hidden_size": 64, "sliding_window_pattern": 2,
        "rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }  # fmt: skip
    shape = shape_of({"model_type": "gemma3", "text_config": older, "vision_config": {}})
    assert shape.rotary_bases == (2e4, 5e5, 2e4, 5e5)
    assert (shape.num_heads, shape.head_width, shape.vocab_size) == (8, 256, 262_208)
