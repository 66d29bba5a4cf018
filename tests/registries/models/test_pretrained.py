import json

import pytest
import torch

from registries import MODELS, UserError
from registries.models.pretrained import CONFIGS, HUB_IDS, PretrainedModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Llama model, as save_pretrained writes it."""
    folder = tmp_path_factory.mktemp("model")
    source = MODELS.build("random")
    source.model(torch.float32).save_pretrained(folder)
    source.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """No network, and nothing that was downloaded before."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_local_folder(folder):
    source = MODELS.build("phi2", path=str(folder))
    assert MODELS.check("phi2", {"path": str(folder)}) == []
    assert source.config()["model_type"] == "llama"
    assert source.tokenizer()("abc")["input_ids"] == MODELS.build("random").tokenizer()("abc")["input_ids"]
    for dtype in (torch.float32, torch.bfloat16):
        model = source.model(dtype)
        assert model.dtype == dtype
        assert not model.training


def test_the_weights_of_a_folder_are_its_own(folder):
    from safetensors.torch import load_file

    saved = load_file(folder / "model.safetensors")
    model = PretrainedModel(str(folder)).model(torch.float32)
    assert model.state_dict()["lm_head.weight"].equal(saved["lm_head.weight"])


@pytest.mark.parametrize("name", ["phi2", "dialogpt_medium", "llama31_8b", "mistral_7b", "smollm2_135m", "tiny_phi"])
def test_any_model_takes_a_folder_instead(name, folder):
    assert MODELS.build(name, path=str(folder)).config()["model_type"] == "llama"


def test_a_home_folder_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert PretrainedModel(f"~/{folder.name}").config()["model_type"] == "llama"
    assert MODELS.check("phi2", {"path": f"~/{folder.name}"}) == []


def test_no_such_folder(tmp_path):
    assert MODELS.check("phi2", {"path": f"{tmp_path}/none"}) == [
        f"model.path={tmp_path}/none: there is no such folder"
    ]
    assert "no such folder" in MODELS.check("phi2", {"path": "./none"})[0]
    with pytest.raises(UserError, match="cannot load the weights of"):
        PretrainedModel(f"{tmp_path}/none").model(torch.float32)


def test_no_config(tmp_path):
    (message,) = MODELS.check("phi2", {"path": str(tmp_path)})
    assert "has no config.json, so it is no Hugging Face model folder" in message
    assert PretrainedModel(str(tmp_path)).config() is None


@pytest.mark.parametrize("files", [[], ["pytorch_model.bin"]])
def test_no_weights(tmp_path, files):
    for name in ["config.json", *files]:
        (tmp_path / name).write_text("{}")
    (message,) = MODELS.check("phi2", {"path": str(tmp_path)})
    assert "holds no weights (*.safetensors)" in message
    assert "pickled weights (*.bin) are not read" in message


def test_pickled_weights_are_not_read(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save(PretrainedModel(str(folder)).model(torch.float32).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot load the weights"):
        PretrainedModel(str(tmp_path)).model(torch.float32)


def test_a_hub_model_is_known_by_its_packaged_config(no_hub):
    source = MODELS.build("phi2", path="microsoft/phi-2")
    assert MODELS.check("phi2", {"path": "microsoft/phi-2"}) == []
    assert set(HUB_IDS) <= {file.stem for file in CONFIGS.glob("*.json")}
    assert source.config() == json.loads((CONFIGS / "phi2.json").read_text())
    assert PretrainedModel("someone/something").config() is None


def test_another_hub_model_is_not_taken_for_the_packaged_one(no_hub):
    assert MODELS.build("phi2", path="someone/something-else").config() is None


@pytest.mark.parametrize("part", ["tokenizer", "weights"])
def test_a_hub_model_without_network_says_what_to_do(no_hub, part):
    source = PretrainedModel("someone/something")
    with pytest.raises(UserError, match=f"cannot load the {part} of 'someone/something'.*model.path=<folder>"):
        source.tokenizer() if part == "tokenizer" else source.model(torch.float32)


def test_damaged_weights_are_an_error_for_the_user(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot load the weights"):
        PretrainedModel(str(tmp_path)).model(torch.float32)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]"])
def test_a_damaged_config_is_an_error_for_the_user(folder, tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(content)
    (message,) = MODELS.check("phi2", {"path": str(tmp_path)})
    assert "config.json" in message
