"""Scores of finished runs and of any model, on any dataset."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

import score
from data_modules import build_data_module
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.config import read_config
from registries.models.random import RandomModel, byte_tokenizer
from registries.registry import UserError
from studies.config.compose import compose
from studies.config.launch import launch
from studies.progress import say
from studies.report.printed_tables import show_rows

TRAINED = ("replacement=toroidal", "replacement.depth=4", "replacement.transfer_steps=2")


@pytest.fixture
def config(small):
    """The config of score.py for a small model and text."""

    def config(*overrides):
        return compose(small(*overrides), "score")

    return config


@pytest.fixture
def model_folder(tmp_path):
    """A model folder as save_pretrained leaves it."""
    torch.manual_seed(7)
    folder = tmp_path / "some_model"
    RandomModel(family="gpt_neox").model(torch.float32).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("split", ["validation", "test", "all"])
def test_the_loss_is_the_sum_of_token_log_probabilities(config, model_folder, split):
    cfg = config("model=tiny_phi", f"model.path={model_folder}", f"split={split}", "dataset.batch_size=3")
    result = score.score(cfg)

    model = AutoModelForCausalLM.from_pretrained(model_folder).double()
    blocks = build_data_module(read_config(cfg).plain, byte_tokenizer()).blocks(split)
    total = count = right = 0
    with torch.no_grad():
        for block in blocks[:, None]:
            log_probabilities = model(input_ids=block).logits[0].log_softmax(-1)
            for position in range(len(block[0]) - 1):
                token = block[0, position + 1]
                total -= log_probabilities[position, token].item()
                right += log_probabilities[position].argmax().item() == token.item()
                count += 1
    # Each token is a byte, but for the ends of documents.
    scored_bytes = (blocks[:, 1:] < 256).sum().item()
    assert result["loss"] == pytest.approx(total / count, rel=1e-5)
    assert result["ppl"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert result["bpb"] == pytest.approx(total / math.log(2) / scored_bytes, rel=1e-5)
    assert result["accuracy"] == pytest.approx(right / count)
    assert (result["split"], result["blocks"], result["tokens"]) == (split, len(blocks), count)


def test_a_finished_run_is_scored_with_what_it_trained(run_once, config):
    folder = run_once(*TRAINED)
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    validation = score.score(config(f"run={folder}"))
    assert validation["loss"] == metrics["val/loss"] != metrics["swap/loss"]
    assert score.score(config(f"run={folder}", "split=test"))["loss"] == metrics["test/loss"]
    everything = score.score(config(f"run={folder}", "split=all"))
    assert everything["blocks"] > 100 > validation["blocks"]


def test_a_finished_run_on_another_dataset(run_once, config):
    folder = run_once(*TRAINED)
    result = score.score(config(f"run={folder}", "dataset=periodic", "dataset.period=4"))
    assert result["dataset"] == "periodic"
    assert {"loss_first_period", "loss_later"} <= result.keys()
    assert "bpb" not in result


def test_a_finished_run_that_trained_nothing(run_once, config):
    folder = run_once()
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    assert score.score(config(f"run={folder}"))["loss"] == pytest.approx(metrics["val/loss"], rel=1e-6)


def test_a_text_that_the_run_was_trained_on_is_told(run_once, config, text_path, tmp_path, caplog):
    folder = run_once(*TRAINED)
    copy = tmp_path / "copy.txt"
    copy.write_text(text_path.read_text())
    score.score(config(f"run={folder}", f"dataset.path={copy}", "split=validation"))
    assert "training split" not in caplog.text
    score.score(config(f"run={folder}", f"dataset.path={copy}", "split=all"))
    assert "scored documents (split=all) are in the run's training split (dataset=text)" in caplog.text


def test_a_text_is_continued(run_once, config):
    folder = run_once(*TRAINED, "samples.max_new_tokens=6", "samples.prompts=[Hello]")
    (sample,) = json.loads((folder / "samples.json").read_text())
    own = ("prompt=Hello", "samples.max_new_tokens=6")
    assert score.score(config(f"run={folder}", *own)) == {"prompt": "Hello", "text": sample["after"]}
    assert score.score(config(*own)) == {"prompt": "Hello", "text": sample["before"]}


def test_a_folder_that_is_no_run(config, tmp_path):
    with pytest.raises(UserError, match="is not a run's folder"):
        score.score(config(f"run={tmp_path}"))


def test_a_run_that_has_not_finished(run, config, monkeypatch, tmp_path):
    def fail(*arguments):
        raise RuntimeError("no")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no"):
        patch.setattr(CausalLMModule, "training_step", fail)
        run(*TRAINED)
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    with pytest.raises(UserError, match="has not finished"):
        score.score(config(f"run={folder}"))


def test_a_split_that_does_not_exist(config):
    with pytest.raises(UserError, match="split='train'.*'validation', 'test' or 'all'"):
        config("split=train")


@pytest.fixture
def start(small, monkeypatch, tmp_path):
    """Start `score.py` with these arguments in this process."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: launch(score.job, "score", small(*arguments))


def test_scores_are_printed_and_nothing_is_written(start, model_folder, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    start("model=tiny_phi", f"model.path={model_folder}")
    assert json.loads(capsys.readouterr().out)["loss"] > 0
    assert sorted(tmp_path.iterdir()) == before


def test_whatever_is_printed_on_the_way_goes_to_stderr(start, monkeypatch, capsys):
    load = RandomModel.model

    def loudly(self, dtype):
        print("converting")
        say("loading")
        show_rows(["a", "b"], [["c", "d"]])
        return load(self, dtype)

    monkeypatch.setattr(RandomModel, "model", loudly)
    start()
    printed = capsys.readouterr()
    assert json.loads(printed.out)["loss"] > 0
    assert [word for word in ("converting", "loading", "c") if word not in printed.err] == []


def test_a_user_error_ends_with_status_2(start, capsys):
    with pytest.raises(SystemExit) as caught:
        start("run=nowhere")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error:\n  nowhere is not a run's folder: it has no config.yaml\n"
