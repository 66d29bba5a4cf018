"""Every option is valid, and every wrong value of its keys is told: its type, its range, a near-miss of its name."""

from typing import Annotated, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt
from omegaconf import OmegaConf

from lightning_modules.config import SECTIONS, EarlyStoppingSettings, RunSettings
from lightning_modules.stages import STAGES
from registries.adapters.adapter import is_trained
from registries.option import CONF
from registries.registry import parameters
from registries.settings import AdapterTrainingSettings
from studies.config import component_checks
from studies.config.check import ScoreSettings, config_errors
from studies.config.compose import compose
from studies.config.groups import GROUPS
from studies.config.override_errors import key_errors
from studies.config.overrides import read_line
from studies.config.two_model_checks import starts_at_random

# What these options need beside their names.
NEEDED = {
    "importance": ["placement.budget=1000000"],
    "suffix": ["placement.suffixes=[q_proj]"],
    "identity": ["model@source=smollm2_135m"],
    "byte_bpe": ["model=lstm"],
    "word": ["model=lstm"],
    "text": [f"dataset.path={CONF / 'config.yaml'}"],
    "context": ["expansion.run=FINISHED"],
    "blocks": ["model=tiny_phi", "controls=[]"],
}
TAKE_MAPPINGS = {"fields", "parts", "training"}  # keys with keys or lists of keys of their own
OUTSIDE = {
    Ge: lambda bound: bound.ge - 1,
    Gt: lambda bound: bound.gt,
    Le: lambda bound: bound.le + 1,
    Lt: lambda bound: bound.lt,
}


def hints_of(group, name):
    """Key -> annotation of an option's keys, shared and own."""
    kinds = [GROUPS[group].settings]
    if GROUPS[group].registry is not None:
        kinds.append(GROUPS[group].registry.get(name))
    if group == "adapter" and is_trained(name):
        kinds.append(AdapterTrainingSettings)
    return {key: item.annotation for kind in kinds for key, item in parameters(kind).items()}


def cases():
    """(overrides, primary config, dotted place of the keys, key -> annotation)."""
    for group in GROUPS:
        for file in sorted((CONF / ("model" if group == "source" else group)).glob("*.yaml")):
            if file.stem in ("none", GROUPS[group].absent) or (group == "source" and starts_at_random(file.stem)):
                continue
            line = f"model@source={file.stem}" if group == "source" else f"{group}={file.stem}"
            lines = [line, *NEEDED.get(file.stem, []), *(["adapter=ridge"] if group == "source" else [])]
            yield pytest.param(lines, "config", group, hints_of(group, file.stem), id=line)
    for name in STAGES.names():
        lines = ["replacement=toroidal", f"recovery=[{name}]"]
        hints = {key: item.annotation for key, item in parameters(STAGES.get(name)).items() if key != "workspace"}
        yield pytest.param(lines, "config", f"recovery.{name}", hints, id=f"recovery={name}")
    for place, kind in {"": RunSettings, "trainer.early_stopping": EarlyStoppingSettings, **SECTIONS}.items():
        hints = {key: item.annotation for key, item in parameters(kind).items()}
        yield pytest.param([], "config", place, hints, id=place or "top")
    hints = {key: item.annotation for key, item in parameters(ScoreSettings).items()}
    yield pytest.param([], "score", "", hints, id="score")


def parts(hint):
    """The alternatives of an annotation, and the bounds of each."""
    if get_origin(hint) is Annotated:
        base, *bounds = get_args(hint)
        return [(base, [bound for bound in bounds if type(bound) in OUTSIDE])]
    alternatives = get_args(hint) if get_origin(hint) is not None and type(None) in get_args(hint) else ()
    return [part for item in alternatives for part in parts(item)] or [(hint, [])]


def wrong_values(key, hint):
    """Values of another type, and values outside of the range."""
    if key not in TAKE_MAPPINGS:
        yield {"banana": 1}
    kinds = parts(hint)
    bases = {base for base, _ in kinds} - {type(None)}
    if bases <= {int, float, bool}:
        yield "banana"
        yield float("inf")
    for base, bounds in kinds:
        for bound in bounds:
            yield base(OUTSIDE[type(bound)](bound))


@pytest.mark.parametrize(("lines", "config_name", "place", "hints"), list(cases()))
def test_an_option_is_valid_and_every_wrong_value_and_name_is_told(
    lines, config_name, place, hints, finished_context_run, monkeypatch
):
    monkeypatch.setattr(component_checks, "has_gpu", lambda: True)
    lines = [line.replace("FINISHED", str(finished_context_run)) for line in lines]
    cfg = compose(lines, config_name)
    plain, path = OmegaConf.to_container(cfg, resolve=True), place.split(".") if place else []
    known = {}  # what is wrong with the parts of the config, of which one at a time has another value

    def errors(key, value):
        return config_errors(changed(plain, path, key, value), known)

    keys = node_at(plain, path).keys() & hints.keys() - {"name", "early_stopping"}  # which has a case of its own
    assert keys
    untold = [
        (key, value)
        for key in sorted(keys)
        for value in wrong_values(key, hints[key])
        if not is_told(errors(key, value), key, value)
    ]
    for key in sorted(keys):
        typed = key_errors(read_line(f"{'.'.join([*path, key])}x=1"), cfg)
        handed = errors(f"{key}x", 1) if place else typed
        untold += [f"{key}x" for messages in (typed, handed) if not any("did you mean" in line for line in messages)]
    assert untold == []


def node_at(plain, path):
    for key in path:
        plain = plain[key]
    return plain


def changed(plain, path, key, value):
    """The config, with another value of one key."""
    if not path:
        return {**plain, key: value}
    return {**plain, path[0]: changed(plain[path[0]], path[1:], key, value)}


def is_told(messages, key, value):
    """Whether a message names the key and its value."""
    return any(key in line and (str(value) in line or repr(value) in line) for line in messages)
