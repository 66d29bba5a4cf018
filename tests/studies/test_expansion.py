"""A run whose model is made larger, beside the model as it was and the larger one from scratch."""

import json
import shutil

import pytest
import torch

import train
from data_modules.tensor_files import read_tensors
from lightning_modules import load_module
from lightning_modules.config import read_config
from lightning_modules.weights import TRAINED_WEIGHTS
from registries import UserError
from studies.controls import control_config
from studies.tools.export import export

CONTEXT = ("model=context_lm", "model.hidden_dim=24", "model.context_dim=6", "model.embed_dim=12", "model.num_layers=2")
TOKENIZER = ("tokenizer=byte_bpe", "tokenizer.vocab_size=300")
BUDGET = ("trainer.max_tokens=null", "trainer.max_steps=4", "dataset.batch_size=2")
TRANSFORMER = ("model=random", "model.family=gpt2", "model.freeze=false", "dataset.batch_size=2")
TOKENS = torch.arange(20)[None]


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.fixture
def context_run(run_once):
    return run_once(*CONTEXT, *TOKENIZER, *BUDGET)


@pytest.fixture
def transformer_run(run_once):
    return run_once(*TRANSFORMER)


@pytest.fixture
def expanded(run):
    """A run that makes the model of another run larger."""

    def expanded(of, name, *more):
        return run("model=none", f"expansion={name}", f"expansion.run={of}", "controls=[]", *BUDGET, *more)

    return expanded


WIDER = ("context", "expansion.context_dim=12")
DEEPER = ("blocks", "expansion.layers=[1]")


@pytest.mark.each_value
@pytest.mark.parametrize(
    ("of", "words"), [("context_run", WIDER), ("transformer_run", DEEPER)], ids=["context", "blocks"]
)
@pytest.mark.parametrize("mode", ["finetune", "freeze"])
def test_it_starts_from_the_run_and_is_loaded_without_it(of, words, mode, request, expanded, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(request.getfixturevalue(of), folder)
    grown = expanded(folder, *words, f"expansion.mode={mode}")
    before, result = result_of(folder)["metrics"], result_of(grown)
    metrics = result["metrics"]
    assert metrics["baseline/loss"] == pytest.approx(before["val/loss"], abs=1e-6)
    assert metrics["swap/loss"] == pytest.approx(metrics["baseline/loss"], abs=1e-5)
    assert metrics["val/loss"] != metrics["swap/loss"]
    assert result["preflight"]["identity"]["passed"]
    added = metrics["params/total"] - before["params/total"]
    assert added > 0
    assert metrics["params/trainable"] == (metrics["params/total"] if mode == "finetune" else added)
    module = load_module(folder)
    old = dict(module.model.named_parameters())
    shutil.rmtree(folder)
    module = load_module(grown)
    export(grown, tmp_path / "exported")
    from transformers import AutoModelForCausalLM

    import registries.recurrent_lm  # noqa: F401

    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    with torch.no_grad():
        assert exported(TOKENS).logits.equal(module.model(TOKENS).logits)
    same = [name for name, parameter in module.model.named_parameters() if name in old and parameter.equal(old[name])]
    assert bool(same) == (mode == "freeze")


def test_what_is_frozen_is_bit_identical_after_training(context_run, expanded):
    weights = read_tensors(
        expanded(context_run, *WIDER, "expansion.mode=freeze", "optimizer.weight_decay=0.5") / TRAINED_WEIGHTS
    )
    old = read_tensors(context_run / TRAINED_WEIGHTS)
    read = "model.recurrence.read.weight"
    assert weights[read][:, : old[read].shape[1]].equal(old[read])
    assert (
        weights["model.recurrence.change.bias"].view(3, 12)[:, :6].equal(old["model.recurrence.change.bias"].view(3, 6))
    )
    assert weights["lm_head.weight"].equal(old["lm_head.weight"])
    assert (weights[read][:, old[read].shape[1] :] != 0).any()  # where it started


def test_a_model_that_is_made_larger_alone_is_loaded_as_it_is(context_run, expanded):
    grown = expanded(context_run, *WIDER, "trainer.max_steps=0")
    old, new = load_module(context_run).model.eval(), load_module(grown).model.eval()
    assert new.config.arguments["context_dim"] == 12
    with torch.no_grad():
        assert new(TOKENS).logits.allclose(old(TOKENS).logits, atol=1e-5)


def test_what_a_frozen_module_leaves_out_gets_no_gradient(run_once, expanded):
    """The reconstruction of `overwrite` is trained for in training mode alone."""
    trained = run_once(*CONTEXT, *TOKENIZER, *BUDGET, "model.update=overwrite")
    assert result_of(expanded(trained, *WIDER, "expansion.mode=freeze"))["status"] == "finished"


def test_its_controls_are_the_old_model_and_one_from_scratch_on_equal_operations(context_run, run, tmp_path):
    folder = run("model=none", "expansion=context", f"expansion.run={context_run}", "expansion.context_dim=12", *BUDGET)
    metrics, runs = result_of(folder)["metrics"], tmp_path / "outputs" / "runs"
    controls = {name: result_of(runs / path)["metrics"] for name, path in result_of(folder)["controls"].items()}
    assert set(controls) == {"original", "scratch"}
    assert controls["original"]["train/tokens"] == metrics["train/tokens"]
    assert controls["original"]["params/total"] < metrics["params/total"] == controls["scratch"]["params/total"]
    earlier = result_of(context_run)["metrics"]["train/flops"]
    step = metrics["train/flops"] / 4
    assert abs(controls["scratch"]["train/flops"] - metrics["train/flops"] - earlier) <= step / 2
    for name, ratio in (("original", "val/ppl_ratio_control"), ("scratch", "val/ppl_ratio_scratch")):
        assert metrics[f"control/{name}/val/loss"] == controls[name]["val/loss"]
        assert f"{ratio}_low" in metrics


@pytest.mark.parametrize("mode", [pytest.param("finetune", marks=pytest.mark.full_product), "freeze"])
def test_a_pretrained_model_needs_no_run(run, mode, monkeypatch):
    monkeypatch.setattr("lightning_modules.dtypes.fast_bfloat16", lambda: True)
    monkeypatch.setattr("lightning_modules.dtypes.BFLOAT16_WIDTH", 1)
    lines = ["model=tiny_phi", "expansion=blocks", f"expansion.mode={mode}", "controls=[]", "model.dtype=auto"]
    folder = run(*lines, *BUDGET)
    metrics = result_of(folder)["metrics"]
    assert metrics["swap/loss"] == pytest.approx(metrics["baseline/loss"], abs=1e-5)
    assert metrics["val/loss"] != metrics["swap/loss"]
    assert len(load_module(folder).model.model.layers) == 8


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("expansion=context", "model=context_lm"), "expansion.run=null: model=context_lm starts from random weights"),
        (("expansion=blocks", "model=tiny_phi", "expansion.mode=scratch", "controls=[]"), "expansion.mode=scratch"),
        (("expansion=blocks", "model=tiny_phi"), "'scratch' is given what"),
        (("expansion=blocks", "model=tiny_phi", "controls=[]", "model.dtype=bfloat16"), "trains in float32"),
        (("expansion=context", "model=none", "expansion.run=nowhere"), "nowhere is not a run's folder"),
        (("expansion=blocks", "model=tiny_phi", "controls=[standard]"), "'standard' does not go with this study"),
        (("expansion=blocks", "model=tiny_phi", "controls=[]", "placement=attention"), "studies of their own"),
        (
            ("expansion=blocks", "model=tiny_phi", "controls=[]", "recovery=[next_token]"),
            "expansion.mode=finetune decides",
        ),
    ],
)
def test_what_cannot_be_expanded_is_told(small, lines, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        train.compose(small(*lines))


def test_a_run_of_another_kind_is_told(small, context_run, transformer_run, run_once, expanded, tmp_path):
    def refused(*lines):
        with pytest.raises(UserError) as raised:
            train.compose(small("model=none", "controls=[]", *lines))
        return str(raised.value)

    assert "expansion=blocks" in refused("expansion=context", f"expansion.run={transformer_run}")
    assert "no attention" in refused("expansion=blocks", f"expansion.run={context_run}")
    assert "no multiple of the 6" in refused(
        "expansion=context", f"expansion.run={context_run}", "expansion.context_dim=6"
    )
    assert "decides the model" in refused("expansion=blocks", f"expansion.run={transformer_run}", "model=tiny_phi")
    replaced = run_once("replacement=toroidal", "replacement.transfer_steps=0", "trainer.max_steps=0")
    assert "is of another kind, with replacement=toroidal" in refused("expansion=blocks", f"expansion.run={replaced}")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(transformer_run, unfinished)
    (unfinished / "result.json").write_text(json.dumps(result_of(transformer_run) | {"status": "killed"}))
    assert "has not finished" in refused("expansion=blocks", f"expansion.run={unfinished}")


def test_a_control_has_the_mode_alone_of_its_own(small, context_run):
    cfg = read_config(
        train.compose(
            small("model=none", *("expansion=context", f"expansion.run={context_run}"), "expansion.context_dim=12")
        )
    )
    for control in ("original", "scratch"):
        changed = control_config(cfg, control)
        assert changed.expansion.mode == control
        assert changed.plain["dataset"] == cfg.plain["dataset"]
    wider = [f"expansion.context_dim={width}" for width in (12, 24)]
    lines = ["model=none", "expansion=context", f"expansion.run={context_run}"]
    one, other = (control_config(read_config(train.compose(small(*lines, line))), "original") for line in wider)
    assert one.plain == other.plain
