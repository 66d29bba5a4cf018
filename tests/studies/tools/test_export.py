import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_modules import load_exported, load_module
from lightning_modules.surgery.exported import SURGERY_FILE
from registries.models.random import byte_tokenizer
from registries.registry import UserError
from studies.tools.export import export
from tests.rules import language_model


def test_a_trained_model_is_exported_for_transformers_alone(run, tmp_path):
    folder = run("model.freeze=false")
    export(folder, tmp_path / "exported")
    tokens = torch.arange(20)[None]
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert torch.equal(exported(tokens).logits, load_module(folder).model.eval()(tokens).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "exported")("été")["input_ids"]


def test_the_dtype_can_be_chosen(run, tmp_path):
    export(run("model.freeze=false"), tmp_path / "exported", "float16")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype="auto").dtype == torch.float16


@pytest.mark.each_value
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi", "gemma3"])
@pytest.mark.parametrize("recovery", ["[transfer]", "[transfer,lora]", "[lora,next_token]"])
def test_a_model_after_surgery_comes_back_bit_for_bit(family, recovery, run, tmp_path):
    """With frozen bf16 weights beside trained fp32 ones."""
    folder = run(
        f"model.family={family}", "model.dtype=bfloat16", "replacement=toroidal", "replacement.transfer_steps=2",
        "replacement.layers=[1]", "replacement.depth=4", f"recovery={recovery}", "trainer.max_steps=2",
        "trainer.val_check_interval=null",
    )  # fmt: skip
    export(folder, tmp_path / "exported")
    model, tokenizer = load_exported(tmp_path / "exported")
    expected = load_module(folder).model.eval()
    ours, theirs = model.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].dtype == theirs[name].dtype and ours[name].equal(theirs[name]) for name in ours)
    tokens = tokenizer("A text of some length.", return_tensors="pt")["input_ids"]
    assert model(tokens).logits.equal(expected(tokens).logits)
    assert "load_exported" in (tmp_path / "exported" / "README.md").read_text()


def test_folders_that_are_no_exported_models(run, tmp_path):
    with pytest.raises(UserError, match="is no exported model: it has no config.json"):
        load_exported(tmp_path)
    export(run("replacement=toroidal", "replacement.transfer_steps=0"), tmp_path / "exported")
    (tmp_path / "exported" / SURGERY_FILE).unlink()
    with pytest.raises(UserError, match="its weights and its surgery differ at '.*core.*'"):
        load_exported(tmp_path / "exported")


def test_an_export_owns_its_folder(run, tmp_path):
    """Files of an earlier one would mix with it: the surgery of one model with the weights of another."""
    first, folder = run("replacement=toroidal", "replacement.transfer_steps=0", "trainer.max_steps=1"), tmp_path / "e"
    folder.mkdir()
    export(first, folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(UserError, match="is not empty"):
        export(first, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        export(first, tmp_path / "file")
    with pytest.raises(UserError, match="dtype 'float31' is none; did you mean 'float32'"):
        export(first, tmp_path / "new", "float31")
    assert not (tmp_path / "new").exists()


def test_an_export_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
    folder = run("model.freeze=false")
    full = OSError(28, "No space left on device")
    monkeypatch.setattr("studies.tools.export._write", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(UserError, match="cannot write the model to .*No space left"):
        export(folder, tmp_path / "there" / "exported")
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize("replacement", ["none", "toroidal"])
def test_a_head_that_only_the_config_ties_is_exported_as_it_is(replacement, run, tmp_path):
    source = tmp_path / "model"
    model = language_model("llama")
    model.save_pretrained(source)
    byte_tokenizer().save_pretrained(source)
    config = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": True}
    (source / "config.json").write_text(json.dumps(config))
    folder = run(
        "model=phi2", f"model.path={source}", "model.dtype=float32", f"replacement={replacement}",
        "trainer.max_steps=1", *([] if replacement == "none" else ["replacement.transfer_steps=0"]),
        f"model.freeze={'false' if replacement == 'none' else 'true'}",
    )  # fmt: skip
    export(folder, tmp_path / "exported")
    text = torch.arange(20)[None]
    expected = load_module(folder).model.eval()(text).logits
    assert load_exported(tmp_path / "exported")[0](text).logits.equal(expected)
    if replacement == "none":
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
        assert again(text).logits.equal(expected)
        again.tie_weights()
        assert again(text).logits.equal(expected)


def test_an_adapter_in_the_models_folder_is_not_exported(run, tmp_path):
    from peft import LoraConfig, get_peft_model

    source = tmp_path / "model"
    language_model("llama").save_pretrained(source)
    byte_tokenizer().save_pretrained(source)
    get_peft_model(language_model("llama"), LoraConfig(init_lora_weights=False)).save_pretrained(source)
    folder = run("model=phi2", f"model.path={source}", "model.dtype=float32", "placement=attention")
    export(folder, tmp_path / "exported")
    text = torch.arange(20)[None]
    expected = load_module(folder).model.eval()(text).logits
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert torch.allclose(exported(text).logits, expected, atol=1e-5)
    assert not list((tmp_path / "exported").glob("adapter*"))


@pytest.mark.parametrize("damage", ["weights", "shape", "config", "surgery"])
def test_a_damaged_export_is_told(damage, run, tmp_path):
    folder = tmp_path / "exported"
    export(run("replacement=toroidal", "replacement.transfer_steps=0"), folder)
    if damage == "weights":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    elif damage == "shape":
        weights = load_file(folder / "model.safetensors") | {"model.norm.weight": torch.ones(3)}
        save_file(weights, folder / "model.safetensors")
    else:
        (folder / {"config": "config.json", "surgery": SURGERY_FILE}[damage]).write_text("{")
    with pytest.raises(UserError, match=f"{folder} is damaged"):
        load_exported(folder)
