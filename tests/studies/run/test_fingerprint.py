"""Whatever changes a number changes the name under which the number is found again."""

import copy
import dataclasses
import json
import shutil

import pytest
import torch

import train
from lightning_modules.config import read_config
from lightning_modules.model_identity import model_identity
from registries.models.random import byte_tokenizer
from registries.models.tiny_phi import TINY_PHI_FOLDER
from registries.option import CONF
from registries.settings import ModelSettings
from studies.run.fingerprint import BY_CONTENT, fingerprint, model_account
from studies.run.relevant_config import IRRELEVANT, IRRELEVANT_IN
from tests.rules import language_model

STAGES = "recovery=[transfer,block_wise,lora,kl,next_token]"
OPERATED = ["replacement=toroidal", "placement=attention"]
# What these placements need beside their names.
PLACEMENTS = {
    "hybrid": ["placement.parts=[{roles:[mlp],layers:all,rank:4}]"],
    "suffix": ["placement.suffixes=[fc1]"],
    "importance": ["placement.budget=50%"],
}
# A study of each kind, so that every key of every group stands in one of them.
STUDIES = {
    "score": [],
    **{f"replacement {name}": [f"replacement={name}", STAGES] for name in ("toroidal", "standard", "window")},
    **{f"placement {name}": [f"placement={name}", *PLACEMENTS.get(name, [])] for name in ("attention", *PLACEMENTS)},
    **{f"adapter {name}": [f"adapter={name}"] for name in ("ridge", "linear", "lora", "mlp")},
    **{f"compressor {name}": [f"compressor={name}"] for name in ("pooling", "convolution", "cross_attention")},
    "random": ["model=random"],
    "sgd": ["optimizer=sgd"],
    "instructions": ["dataset=alpaca"],
    "periodic": ["dataset=periodic"],
    "text": ["dataset=text", f"dataset.path={CONF}"],
}
# `samples` and `communication` are parts of what a run measures; the other keys that cannot matter stand in the module.
UNCHANGEABLE = {"name"}  # of a group: it is the option itself


def composed(overrides):
    return read_config(train.compose(["model=tiny_phi", *overrides] if "model=random" not in overrides else overrides))


def leaves(node, path=()):
    """(path, value) of everything in a config that is no mapping."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def other(value):
    """A value that is not this one."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else f"{value} changed"


def is_irrelevant(path):
    named = {**IRRELEVANT_IN, **BY_CONTENT}
    return path[0] in IRRELEVANT or (len(path) > 1 and path[1] in named.get(path[0], ()))


@pytest.mark.parametrize("study", STUDIES)
def test_every_key_changes_it_or_cannot_matter(study, monkeypatch):
    """The model's files count by content, see below."""
    cfg = composed(STUDIES[study])
    monkeypatch.setattr("studies.run.fingerprint._identity", lambda loader: "content")
    monkeypatch.setattr(ModelSettings, "loader", lambda settings, cache_dir, num_tokens=None: None)
    monkeypatch.setattr("studies.run.fingerprint.run_code", lambda cfg: "code")
    before = fingerprint(cfg, "data")
    for path, value in leaves(cfg.plain):
        if path[-1] in UNCHANGEABLE or path[-1] == "teacher":
            continue
        changed = copy.deepcopy(dict(cfg.plain))
        node = changed
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = other(value)
        changed_cfg = dataclasses.replace(cfg, plain=changed, recovery=changed["recovery"])
        assert (fingerprint(changed_cfg, "data") == before) == is_irrelevant(path), ".".join(path)


def test_the_order_of_stages_changes_it():
    orders = (["transfer", "kl"], ["kl", "transfer"])
    one, two = (composed(["replacement=toroidal", f"recovery=[{','.join(order)}]"]) for order in orders)
    assert fingerprint(one, "data") != fingerprint(two, "data")


@pytest.fixture
def folder(tmp_path):
    """A model's folder that may be changed."""
    return shutil.copytree(TINY_PHI_FOLDER, tmp_path / "model")


def change_a_weight(folder):
    """One bit of the last weight in the file."""
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


WHERE = {
    "model": lambda folder: [f"model.path={folder}"],
    "second model": lambda folder: ["adapter=ridge", f"source.path={folder}"],
    "teacher": lambda folder: ["replacement=toroidal", "recovery=[kl]", f"recovery.kl.teacher={folder}"],
}


@pytest.mark.parametrize("where", WHERE)
def test_weights_count_by_their_content(where, folder):
    cfg = composed(WHERE[where](folder))
    before = fingerprint(cfg, "data")
    copied = shutil.copytree(folder, folder.parent / "copy")
    assert fingerprint(composed(WHERE[where](copied)), "data") == before
    (folder / "README.md").write_text("about the model")
    (folder / "generation_config.json").write_text(json.dumps({"num_beams": 4}))
    assert fingerprint(cfg, "data") == before
    change_a_weight(folder)
    assert fingerprint(cfg, "data") != before


def test_a_tokenizer_counts_by_its_content(folder):
    cfg = composed([f"model.path={folder}"])
    before = fingerprint(cfg, "data")
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("the", "teh", 1))
    assert fingerprint(cfg, "data") != before


def test_a_buffer_that_is_kept_counts_as_a_weight():
    model = language_model("llama")
    before = model_identity(model)["weights"]
    model.register_buffer("mean", torch.ones(2))
    assert model_identity(model)["weights"] != before


def other_tokenizer():
    """The byte tokenizer, whose texts end with another token."""
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "!"
    return tokenizer


@pytest.mark.parametrize(
    "change", ["weights", "config", "tokenizer", "precision", "code of models", "code of runs", "options"]
)
def test_the_account_of_a_model_holds_what_its_numbers_depend_on(change, monkeypatch):
    """What cached scores, samples and activations are named by: of the model as it was, and of the changed one."""
    model, tokenizer = language_model("llama"), byte_tokenizer()
    cfg = composed(OPERATED)
    before = [model_account(model, tokenizer, cfg, changed) for changed in (False, True)]
    if change == "weights":
        model = language_model("llama", seed=1)
    elif change == "config":
        model.config.rms_norm_eps *= 2
    elif change == "tokenizer":
        tokenizer = other_tokenizer()
    elif change == "precision":
        cfg = composed([*OPERATED, "trainer.precision=bf16-mixed"])
    elif change == "options":
        cfg = composed([*OPERATED, "replacement.lambda_distance=0.5"])
    else:
        name = {"code of models": "model_code", "code of runs": "run_code"}[change]
        monkeypatch.setattr(f"studies.run.fingerprint.{name}", lambda cfg: "")
    after = [model_account(model, tokenizer, cfg, changed) for changed in (False, True)]
    of_changed_models = change in ("code of runs", "options")
    of_untouched_models = change == "code of models"
    assert (before[0] == after[0], before[1] == after[1]) == (of_changed_models, of_untouched_models)
