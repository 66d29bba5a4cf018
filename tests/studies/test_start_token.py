"""A model that was trained with a start token gets it before everything that it reads, in every study."""

import json

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import LlamaModel

import train
from lightning_modules.preflight import LENGTH
from registries.models.random import byte_tokenizer

STUDIES = {
    "replacement": ["replacement=toroidal", "replacement.transfer_steps=2", "dataset.train_size=4"],
    "placement": ["placement=attention", "placement.rank=2", "dataset=alpaca"],
    "two models": ["adapter=ridge", "model@source=random", "dataset.train_size=4"],
    "soft tokens": [
        "compressor=pooling",
        "model@source=random",
        "compressor.context=8",
        "compressor.tokens=2",
        "compressor.steps=2",
        "dataset.train_size=4",
    ],
}


@pytest.fixture(scope="session")
def starting(tmp_path_factory):
    """The folder of a tokenizer that puts a start token before a text, and that token."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    special = [("<s>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=special)
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder, tokenizer.bos_token_id


@pytest.fixture
def first_inputs(monkeypatch):
    """What every forward pass that begins a text begins with: rows of ids, or of embeddings."""
    read, forward = [], LlamaModel.forward

    def recorded(model, input_ids=None, inputs_embeds=None, **others):
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        if inputs.shape[1] != LENGTH:  # of the random tokens by which a model is checked
            read.append((model, inputs[:, 0].detach()))
        return forward(model, input_ids=input_ids, inputs_embeds=inputs_embeds, **others)

    monkeypatch.setattr(LlamaModel, "forward", recorded)
    return read


@pytest.mark.parametrize("study", STUDIES)
def test_every_text_begins_with_it(study, small, starting, first_inputs, tmp_path):
    folder, token = starting
    records = tmp_path / "records.json"
    records.write_text(json.dumps([{"instruction": f"Say {n}", "output": f"{n} and {n * n}"} for n in range(40)]))
    lines = [*STUDIES[study], f"model.tokenizer={folder}", "preflight=false"]
    if "model@source=random" in lines:
        lines += [f"source.tokenizer={folder}"]
    if "dataset=alpaca" in lines:
        lines += ["dataset.block_size=64", "dataset.prompt='{instruction}: '"]
    lines = [*small(*lines), *([f"dataset.path={records}"] if "dataset=alpaca" in lines else [])]
    result = train.run(train.compose(lines))
    assert result["status"] == "finished" and result["dataset"]["start_token"] == "<s>"
    for model, first in first_inputs:
        if first.is_floating_point():
            first = (first[:, None] - model.embed_tokens.weight).square().sum(-1).argmin(-1)
        assert first.tolist() == [token] * len(first)
    assert first_inputs


def test_a_run_is_scored_and_continued_as_it_was_trained(small, starting, first_inputs, run):
    from score import score
    from studies.config.compose import compose

    folder, token = starting
    done = run("placement=attention", "placement.rank=2", f"model.tokenizer={folder}", "dataset.start_token=false")
    first_inputs.clear()
    scored = score(compose([f"run={done}", "split=test", *small()[1:6]], "score"))
    assert scored["loss"] == pytest.approx(json.loads((done / "result.json").read_text())["metrics"]["test/loss"])
    score(compose([f"run={done}", "prompt=Once", "samples.max_new_tokens=2"], "score"))
    assert not any((first == token).any() for _, first in first_inputs)
    assert torch.is_tensor(first_inputs[0][1])
