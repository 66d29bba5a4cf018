import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_modules import load_exported, load_module
from lightning_modules.exported import SURGERY_FILE
from registries.registry import UserError
from studies.export import export


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
