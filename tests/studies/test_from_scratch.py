"""Small models that are trained from scratch, by the study of one model."""

import json

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import registries.recurrent_lm  # noqa: F401
import train
from data_modules import build_data_module
from lightning_modules import load_module
from lightning_modules.config import read_config
from lightning_modules.training.trainer import evaluate
from registries.models.recurrence import RECURRENCES
from registries.option import CONF
from studies.run.curves import read_curves
from studies.tools.export import export

SMALL = {
    "context_lm": ("model.hidden_dim=24", "model.context_dim=12", "model.embed_dim=12"),
    "lstm": ("model.hidden_dim=16", "model.embed_dim=12"),
}


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("name", RECURRENCES.names())
@pytest.mark.parametrize("size", ["full", "small"])
def test_without_more_it_is_trained_on_the_tokens_of_the_size(name, size):
    cfg = train.compose([f"model={name}", f"size={size}"])
    values = yaml.safe_load((CONF / "size" / f"{size}.yaml").read_text())
    assert cfg.dataset.block_size == values["scratch_block_size"]
    assert cfg.trainer.max_tokens == values["scratch_tokens"]
    assert (cfg.trainer.max_steps, cfg.model.freeze, cfg.tokenizer.name) == (-1, False, "byte_bpe")
    own = train.compose([f"model={name}", "tokenizer=word", "dataset.block_size=8", "trainer.max_tokens=5K"])
    assert (own.tokenizer.name, own.dataset.block_size, own.trainer.max_tokens) == ("word", 8, "5K")


@pytest.mark.parametrize("tokenizer", ["word", "byte_bpe"])
@pytest.mark.parametrize("name", RECURRENCES.names())
def test_a_run_trains_everything_and_is_loaded_with_its_tokenizer(run_once, name, tokenizer):
    size = {"word": 100, "byte_bpe": 300}[tokenizer]
    lines = [f"model={name}", *SMALL.get(name, ()), f"tokenizer={tokenizer}", f"tokenizer.vocab_size={size}"]
    folder = run_once(
        *lines, "optimizer.lr=1e-2", "trainer.max_steps=20", "trainer.max_tokens=null", "trainer.val_check_interval=20"
    )
    result = result_of(folder)
    metrics = result["metrics"]
    assert metrics["params/trainable"] == metrics["params/total"]
    assert metrics["val/loss"] < metrics["baseline/loss"] - 0.3
    assert ("val/unknown_rate" in metrics) == ("test/ppl_known" in metrics) == (tokenizer == "word")
    module = load_module(folder)
    assert module.model.config.vocab_size == len(module.tokenizer) == size
    data = build_data_module(result["config"], module.tokenizer)
    module.measure(data.token_bytes, data.position_groups(), data.unknown)
    scores = evaluate(module, data.loader("validation"), read_config(result["config"]).trainer)
    assert scores["loss"] == metrics["val/loss"]
    assert scores["bpb"] == metrics["val/bpb"]


def test_the_reconstruction_is_trained_for_and_told(run):
    folder = run("model=context_lm", *SMALL["context_lm"], "model.update=overwrite", "tokenizer=model")
    curves = read_curves(folder)
    assert {"train/nll", "train/auxiliary"} <= curves.keys()
    for (_, total), (_, nll), (_, auxiliary) in zip(
        curves["train/loss"], curves["train/nll"], curves["train/auxiliary"], strict=True
    ):
        assert total == pytest.approx(nll + auxiliary, rel=1e-5)


def test_an_export_is_loaded_after_one_import(run_once, tmp_path):
    folder = run_once("model=lstm", *SMALL["lstm"], "tokenizer=word", "tokenizer.vocab_size=100")
    export(folder, tmp_path / "exported")
    model, tokenizer = (kind.from_pretrained(tmp_path / "exported") for kind in (AutoModelForCausalLM, AutoTokenizer))
    module, tokens = load_module(folder), torch.arange(20)[None]
    assert model(tokens).logits.equal(module.model(tokens).logits)
    assert tokenizer("Paragraph 3. zzz")["input_ids"] == module.tokenizer("Paragraph 3. zzz")["input_ids"]


@pytest.mark.parametrize(("name", "suffix", "rows"), [("context_lm", "change", 1), ("lstm", "lm_head", 1)])
def test_lora_by_names(run, name, suffix, rows):
    lines = [f"model={name}", *SMALL[name], "tokenizer=model", "model.freeze=true", "placement=suffix"]
    result = result_of(run(*lines, f"placement.suffixes=[{suffix}]", "placement.rank=2", "optimizer.lr=1e-2"))
    assert len(result["stages"]["next_token"]["trained"]) == 2 * rows
    assert result["metrics"]["val/loss"] < result["metrics"]["baseline/loss"]


def test_documents_are_kept_apart_in_instruction_data(small, tmp_path):
    records = [{"instruction": f"Say {number}", "output": f"It is {number}."} for number in range(40)]
    (tmp_path / "records.json").write_text(json.dumps(records))
    lines = ["model=context_lm", *SMALL["context_lm"], "tokenizer.vocab_size=300", "dataset=alpaca"]
    lines = small(*lines, "dataset.block_size=256", "dataset.train_size=null")
    result = train.run(train.compose([*lines, f"dataset.path={tmp_path / 'records.json'}"]))
    assert result["status"] == "finished"
    assert result["dataset"]["train"]["examples"] > result["dataset"]["train"]["blocks"]


def test_a_transformer_has_as_many_tokens_as_the_tokenizer_that_is_trained_for_it(run_once):
    lines = [
        "model=random",
        "model.freeze=false",
        "tokenizer=byte_bpe",
        "tokenizer.vocab_size=300",
        "dataset.batch_size=2",
    ]
    module = load_module(run_once(*lines))
    assert module.model.config.vocab_size == len(module.tokenizer) == 300
