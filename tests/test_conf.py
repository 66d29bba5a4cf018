"""The YAML files of `conf/` against what they configure."""

import re

import pytest
import yaml

from lightning_modules.config import SECTIONS, EarlyStoppingSettings, RunSettings
from lightning_modules.stages import STAGES
from registries.adapters.adapter import is_trained
from registries.option import CONF, base_values, root_values, shared_keys
from registries.registry import defaults, parameters
from registries.settings import AdapterTrainingSettings
from studies.config.check import ScoreSettings
from studies.config.groups import GROUPS, OTHER_SECTIONS

REGISTERED = {key: group for key, group in GROUPS.items() if group.registry is not None and key != "source"}
OPTIONS = sorted((file.parent.name, file.stem) for file in CONF.glob("*/*.yaml") if file.parent.name != "base")
OPTIONS.remove(("model", "none"))  # of the second model alone
COMPONENTS = [(group, name) for group, name in OPTIONS if group in REGISTERED and name != REGISTERED[group].absent]

# Where the value of a YAML is a choice for that option, and the default in the code one for use without a config.
CHOSEN = {"optimizer": {"lr"}}  # smaller than AdamW's: what is trained starts close to where it should end


def read(file):
    return yaml.safe_load(file.read_text())


def content(group, name):
    """The keys of an option with their values, those of the files in `conf/base` that it builds on included."""
    values = read(CONF / group / f"{name}.yaml")
    bases = re.findall(r"/base/(\w+)@_here_", str(values.pop("defaults", [])))
    inherited = {key: value for base in bases for key, value in base_values(base).items()}
    return {key: _number(value) for key, value in {**inherited, **values}.items()}


def own_parameters(group, name):
    """The keys of a component that no other option of its group has to have."""
    return set(parameters(REGISTERED[group].registry.get(name))) - set(REGISTERED[group].supplied)


def _number(value):
    """YAML 1.1 reads 1e-3 as text; Hydra reads it as a number."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"\d+e-\d+", value) else value


@pytest.mark.parametrize("group", REGISTERED)
def test_options_and_components_have_the_same_names(group):
    options = {name for folder, name in OPTIONS if folder == group}
    assert options - {"none", REGISTERED[group].absent} == set(REGISTERED[group].registry.names())


@pytest.mark.parametrize(("group", "name"), COMPONENTS)
def test_keys_are_those_that_the_component_takes(group, name):
    shared = shared_keys(REGISTERED[group].settings)
    shared += shared_keys(AdapterTrainingSettings) if group == "adapter" and is_trained(name) else []
    assert set(content(group, name)) == {"name", *shared, *own_parameters(group, name)}


@pytest.mark.parametrize(("group", "name"), COMPONENTS)
def test_values_are_the_defaults_in_the_code(group, name):
    """A component is built alike by a config and in Python."""
    code, values = defaults(REGISTERED[group].registry.get(name)), content(group, name)
    same = code.keys() & values.keys() - CHOSEN.get(group, set())
    assert {key: values[key] for key in same} == {key: code[key] for key in same}


def test_stages_have_a_yaml_each_with_their_keys_and_defaults():
    assert {name for folder, name in OPTIONS if folder == "recovery"} == {"none", *STAGES.names()}
    for name in STAGES.names():
        assert (CONF / "recovery" / f"{name}.yaml").read_text().startswith(f"# @package recovery.{name}\n")
        values, code = content("recovery", name), defaults(STAGES.get(name))
        assert set(values) == set(parameters(STAGES.get(name))) - {"workspace"}
        chosen = {"lr": 1e-3} if name == "lora" else {}  # about ten times that of full training
        assert values == {key: {**code, **chosen}[key] for key in values}


def test_the_base_of_a_group_has_the_keys_that_its_options_share():
    """Their values stand in no other place: a key of the settings without one could not be read."""
    kinds = [group.settings for group in GROUPS.values()] + [AdapterTrainingSettings]
    for kind in kinds:
        assert set(base_values(kind.base)) - {"name"} >= set(shared_keys(kind)), kind
    assert set(base_values("trainer")["early_stopping"]) == set(shared_keys(EarlyStoppingSettings))


def test_the_top_of_the_config_has_the_keys_of_its_settings():
    values = dict(root_values())
    sections = {key: values.pop(key) for key in OTHER_SECTIONS if key in values}
    assert set(values) - {"defaults", "hydra"} == set(shared_keys(RunSettings))
    assert sections.pop("recovery") == {}
    assert {key: set(section) for key, section in sections.items()} == {
        key: set(shared_keys(kind)) for key, kind in SECTIONS.items()
    }
    assert set(read(CONF / "score.yaml")) - {"defaults", "model"} == set(shared_keys(ScoreSettings))


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda file: str(file.relative_to(CONF)))
def test_every_knob_has_a_comment(file):
    text = re.split(r"^hydra:", file.read_text(), flags=re.MULTILINE)[0]  # what follows are Hydra's own keys
    text = re.sub(r"^defaults:\n(  .*\n)+", "", text, flags=re.MULTILINE)
    knobs = re.findall(
        r"^ *(?!name:|defaults:|_target_:|experiment: \{name: \w+\}$)[a-z_]+: .*$", text, flags=re.MULTILINE
    )
    assert [line for line in knobs if "  # " not in line] == []
