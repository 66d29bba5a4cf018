import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_modules import load_module
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


def test_replaced_layers_cannot_be_exported(run, tmp_path):
    folder = run("replacement=toroidal", "replacement.transfer_steps=0")
    with pytest.raises(UserError, match=r"replaced attention layers \[0\]"):
        export(folder, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
