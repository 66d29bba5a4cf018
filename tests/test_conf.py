"""The YAML files of `conf/` against the signatures of what they configure."""

import re
from pathlib import Path

import pytest
import yaml

import train
from data_modules import DATASETS
from data_modules.block_settings import BlockSettings
from lightning_modules import OPTIMIZERS, STAGES
from lightning_modules.options import (
    adapter_options,
    adapter_training_options,
    compressor_options,
    model_options,
    optimizer_options,
    placement_options,
    surgery_options,
)
from registries import ADAPTERS, ATTENTION, COMPRESSORS, MODELS, PLACEMENTS
from registries.adapters.adapter import is_trained
from registries.registry import defaults, parameters
from studies.config import check as schema

CONF = Path(__file__).resolve().parent.parent / "conf"
REGISTRIES = {
    "model": (MODELS, model_options),
    "replacement": (ATTENTION, surgery_options),
    "placement": (PLACEMENTS, placement_options),
    "dataset": (DATASETS, BlockSettings),
    "optimizer": (OPTIMIZERS, optimizer_options),
    "adapter": (ADAPTERS, adapter_options),
    "compressor": (COMPRESSORS, compressor_options),
}
SUPPLIED = {
    "shape",
    "parameters",
    "cache_dir",
    "scores",
    "source_width",
    "target_width",
}  # by the code that builds, not by the config
OPTIONS = sorted((file.parent.name, file.stem) for file in CONF.glob("*/*.yaml"))
OPTIONS.remove(("model", "none"))  # of the second model alone
COMPONENTS = [(group, name) for group, name in OPTIONS if group in REGISTRIES and name != "none"]

SAVES_MEMORY = {"accumulate_grad_batches": 16, "gradient_checkpointing": True, "loss_chunk_size": 64}

# Where the value of a YAML is a choice for that option, and the default in the code one for use without a config.
CHOSEN = {
    "model": {"dtype"},  # small models gain nothing from bf16
    "dataset": {"block_size", "train_size", "val_size", "test_size", "batch_size"},  # each dataset its own
    "optimizer": {"lr"},  # smaller than AdamW's: what is trained starts close to where it should end
    "replacement": {"layers"},  # [0] is how a user types the same layer as first:1
    "adapter": {"first_token", "lr"},  # the identity changes nothing at all; matrices bear a larger rate
}


# What has no default.
NEEDED = {
    "importance": ["placement.budget=1000000"],
    "suffix": ["placement.suffixes=[q_proj]"],
    "identity": ["model@source=smollm2_135m"],
}


def content(group, name):
    values = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    values.pop("defaults", None)
    return values


def code_defaults(group, name):
    registry, shared = REGISTRIES[group]
    training = defaults(adapter_training_options) if group == "adapter" and is_trained(name) else {}
    return {**defaults(shared), **training, **defaults(registry.get(name))}


@pytest.mark.parametrize("group", REGISTRIES)
def test_options_and_components_have_the_same_names(group):
    options = {name for folder, name in OPTIONS if folder == group} - {"none"}
    assert options == set(REGISTRIES[group][0].names())


def test_stages_have_a_yaml_each_with_their_keys_and_defaults():
    assert {name for folder, name in OPTIONS if folder == "recovery"} == {"none", *STAGES.names()}
    for name in STAGES.names():
        text = (CONF / "recovery" / f"{name}.yaml").read_text()
        assert text.startswith(f"# @package recovery.{name}\n")
        values, code = content("recovery", name), defaults(STAGES.get(name))
        assert set(values) == set(parameters(STAGES.get(name))) - {"workspace"}
        chosen = {"lr": 1e-3} if name == "lora" else {}  # about ten times that of full training
        assert {key: _number(value) for key, value in values.items()} == {
            key: {**code, **chosen}[key] for key in values
        }


@pytest.mark.parametrize(("group", "name"), COMPONENTS)
def test_keys_are_those_that_the_component_takes(group, name):
    registry, shared = REGISTRIES[group]
    own = set(parameters(registry.get(name))) - ({"model"} if group == "placement" else set())
    training = set(parameters(adapter_training_options)) if group == "adapter" and is_trained(name) else set()
    expected = {"name", *parameters(shared), *training, *own} - SUPPLIED
    assert set(content(group, name)) == expected


@pytest.mark.parametrize(("group", "name"), COMPONENTS)
def test_values_are_the_defaults_in_the_code(group, name):
    code, values = code_defaults(group, name), content(group, name)
    same = code.keys() & values.keys() - CHOSEN.get(group, set())
    assert {key: _number(values[key]) for key in same} == {key: code[key] for key in same}


def _number(value):
    """YAML 1.1 reads 1e-3 as text; Hydra reads it as a number."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"\d+e-\d+", value) else value


@pytest.mark.parametrize("name", [name for group, name in OPTIONS if group == "trainer"])
def test_trainers_have_the_keys_and_defaults_of_the_schema(name):
    values, code = content("trainer", name), defaults(schema.trainer_options)
    stopping = values.pop("early_stopping")
    assert values.pop("name") == name
    assert values.pop("accelerator") == {"gpu_8gb": "gpu", "ddp": "auto"}.get(name, name)
    expected = {key: value for key, value in code.items() if key not in ("accelerator", "early_stopping")}
    assert values == expected | {"gpu_8gb": SAVES_MEMORY, "ddp": {"devices": 2}}.get(name, {})
    assert stopping == defaults(schema.early_stopping_options)


def test_the_top_of_the_config_has_the_keys_and_defaults_of_the_schema():
    values, code = yaml.safe_load((CONF / "config.yaml").read_text()), defaults(schema.root_options)
    code |= {"plugins": [], "controls": [], "cache_dir": '${oc.env:GRAFTLAB_CACHE,"~/.cache/graftlab"}'}
    parts = ("defaults", "hydra", "samples", "activations", "recovery", "communication")
    assert {key: value for key, value in values.items() if key not in parts} == code
    assert values["recovery"] == {}
    assert values["activations"] == defaults(schema.activation_options)
    assert values["communication"] == defaults(schema.communication_options)
    assert values["samples"].keys() == parameters(schema.sample_options).keys()
    assert values["samples"]["max_new_tokens"] == defaults(schema.sample_options)["max_new_tokens"]
    score = yaml.safe_load((CONF / "score.yaml").read_text())
    assert {key: value for key, value in score.items() if key not in ("defaults", "model")} == defaults(
        schema.score_options
    )


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_every_option_is_a_valid_config(group, name, text_path, monkeypatch):
    monkeypatch.setattr(schema, "_has_gpu", lambda: True)
    path = [f"dataset.path={text_path}"] if name == "text" else []
    operated = ["replacement=toroidal"] if group == "recovery" else []
    cfg = train.compose([f"{group}={name}", *path, *operated, *NEEDED.get(name, [])])
    if group == "recovery":
        assert list(cfg.recovery) == [name] * (name != "none")
    else:
        assert cfg[group].name == name


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda file: str(file.relative_to(CONF)))
def test_every_knob_has_a_comment(file):
    text = re.split(r"^hydra:", file.read_text(), flags=re.MULTILINE)[0]  # what follows are Hydra's own keys
    text = re.sub(r"^defaults:\n(  .*\n)+", "", text, flags=re.MULTILINE)
    knobs = re.findall(r"^ *(?!name:)[a-z_]+: .*$", text, flags=re.MULTILINE)
    assert [line for line in knobs if "  # " not in line] == []
