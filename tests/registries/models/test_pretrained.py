import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from registries import MODELS, UserError
from registries.architectures import architecture_of
from registries.model_shape import shape_of
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


# The model is what its weights are


@pytest.fixture
def changed(folder, tmp_path):
    """A copy of the folder with other weights (a function of them) and other keys of its config."""

    def changed(weights=None, **config):
        copy = tmp_path / "changed"
        shutil.copytree(folder, copy)
        if weights is not None:
            tensors = {name: tensor.clone() for name, tensor in weights(load_file(copy / "model.safetensors")).items()}
            save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
        known = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(known | config))
        return copy

    return changed


def without(part):
    return lambda weights: {name: tensor for name, tensor in weights.items() if part not in name}


@pytest.mark.parametrize(
    ("weights", "config", "told"),
    [
        (without("lm_head"), {}, "lm_head.weight are missing"),
        (without("layers.1."), {}, "layers.1.input_layernorm.weight.* and 6 more are missing"),
        (without("q_proj"), {}, "missing"),
        (None, {"num_hidden_layers": 3}, "layers.2.* are missing"),
        (None, {"num_hidden_layers": 1}, "layers.1.* belong to no part of the model"),
        (None, {"attention_bias": True}, "q_proj.bias.* are missing|k_proj.bias.* are missing"),
        (lambda weights: {f"x.{name}": tensor for name, tensor in weights.items()}, {}, "missing; x.lm_head.* no part"),
        (lambda weights: weights | {"strange": torch.zeros(2)}, {}, "strange belong to no part"),
        (None, {"intermediate_size": 100}, r"down_proj.weight \(\(64, 256\), not \(64, 100\)\)"),
        (None, {"hidden_act": "none such"}, "none such"),
        (None, {"hidden_size": "64"}, "hidden_size"),
    ],
)  # fmt: skip
def test_weights_that_are_not_those_of_the_config_are_an_error(changed, weights, config, told):
    path = changed(weights, **config)
    with pytest.raises(UserError, match=told) as caught:
        PretrainedModel(str(path)).model(torch.float32)
    assert str(path) in str(caught.value)
    assert len(caught.value.messages) == 1
    assert "\n" not in str(caught.value)


def test_a_tied_head_may_be_missing(changed):
    path = changed(without("lm_head"), tie_word_embeddings=True)
    model = PretrainedModel(str(path)).model(torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_head_that_only_the_config_ties_stays_apart(changed, folder, tmp_path):
    """Also for whoever reads the config later, as an export does."""
    model = PretrainedModel(str(changed(tie_word_embeddings=True))).model(torch.float32)
    model.tie_weights()
    model.save_pretrained(tmp_path / "again")
    again = PretrainedModel(str(tmp_path / "again")).model(torch.float32)
    for each in (model, again):
        assert each.lm_head.weight.equal(load_file(folder / "model.safetensors")["lm_head.weight"])


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised .quant_method 'gptq'"),
        ({"quantization_config": {"quant_method": "none such"}}, "quantised .quant_method 'none such'"),
        ({"return_dict": False}, "return_dict: false"),
        ({"attn_implementation": "flash_attention_2"}, "flash_attn is not installed"),
        ({"_attn_implementation": "none such"}, "'none such'. Allowed: eager, sdpa"),
        ({"attn_implementation": "someone/kernels"}, "'someone/kernels'. Allowed: eager, sdpa"),
    ],
)
def test_what_a_config_asks_for_in_vain_is_told_before_any_weights_are_read(changed, config, told):
    path = changed(lambda weights: {}, **config)
    (message,) = MODELS.check("phi2", {"path": str(path)})
    with pytest.raises(UserError, match=told):
        PretrainedModel(str(path)).model(torch.float32)
    assert message.startswith(f"model.path={path}: ")


@pytest.mark.parametrize("config", [{"quantization_config": None}, {"attn_implementation": "eager"}])
def test_what_a_config_may_say(changed, config):
    path = changed(**config)
    assert MODELS.check("phi2", {"path": str(path)}) == []
    PretrainedModel(str(path)).model(torch.float32)


def test_what_lies_beside_the_weights_changes_nothing(changed):
    """Adapters, settings of decoding, and outputs that were once asked for."""
    from peft import LoraConfig, get_peft_model

    path = changed(output_hidden_states=True, output_attentions=True, num_beams=2)
    plain = PretrainedModel(str(path)).model(torch.float32)
    adapted = get_peft_model(PretrainedModel(str(path)).model(torch.float32), LoraConfig(init_lora_weights=False))
    adapted.save_pretrained(path)
    assert (path / "adapter_model.safetensors").is_file()
    (path / "generation_config.json").write_text('{"repetition_penalty": 1.5, "num_beams": 3, "max_length": 4}')
    model = PretrainedModel(str(path)).model(torch.float32)
    assert model.state_dict().keys() == plain.state_dict().keys()
    output = model(torch.arange(9)[None])
    assert output.logits.equal(plain(torch.arange(9)[None]).logits)
    assert output.hidden_states is None
    settings = model.generation_config
    assert (settings.repetition_penalty, settings.num_beams, settings.max_length) == (None, None, None)
    assert settings.eos_token_id == plain.config.eos_token_id


def test_a_folder_that_holds_an_adapter_or_a_model_after_surgery_alone(tmp_path, folder):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "holds a PEFT adapter alone" in MODELS.check("phi2", {"path": str(tmp_path)})[0]
    exported = tmp_path / "exported"
    shutil.copytree(folder, exported)
    (exported / "surgery.json").write_text("{}")
    assert "load_exported" in MODELS.check("phi2", {"path": str(exported)})[0]


def test_weights_of_an_adapter_are_no_model(changed):
    path = changed()
    (path / "model.safetensors").rename(path / "adapter_model.safetensors")
    assert "holds no weights" in MODELS.check("phi2", {"path": str(path)})[0]


def test_a_relative_folder_is_known_by_its_absolute_path(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    for path in (f"./{folder.name}", folder.name, f"../{folder.parent.name}/{folder.name}"):
        assert PretrainedModel(path).model(torch.float32).name_or_path.startswith(str(folder.parent))


# Multimodal models


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory):
    """A Gemma 3 with a vision tower, as the hub has them: what is as usual is left out of its text_config."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    text = {**small, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4, "vocab_size": 300}
    text |= {"sliding_window": 8, "query_pre_attn_scalar": 4}
    vision = {**small, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
    model = Gemma3ForConditionalGeneration(config).eval()
    folder = tmp_path_factory.mktemp("gemma")
    model.save_pretrained(folder)
    MODELS.build("random").tokenizer().save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    written["text_config"] = {**text, "model_type": "gemma3_text", "rope_scaling": {"factor": 8.0, "type": "linear"}}
    for usual in ("num_attention_heads", "num_key_value_heads"):
        del written["text_config"][usual]
    (folder / "config.json").write_text(json.dumps(written))
    return folder


@pytest.mark.parametrize("older", [False, True])
def test_of_a_multimodal_model_the_language_model_is_read(multimodal, tmp_path, older):
    from transformers import AutoModelForImageTextToText

    path = tmp_path / "copy"
    shutil.copytree(multimodal, path)
    if older:  # as Google saved them
        weights = load_file(path / "model.safetensors")
        renamed = {
            name.replace("model.language_model", "language_model.model").replace("model.vision", "vision"): tensor
            for name, tensor in weights.items()
        }
        save_file(renamed, path / "model.safetensors", metadata={"format": "pt"})
    whole = AutoModelForImageTextToText.from_pretrained(multimodal).eval()
    source = PretrainedModel(str(path))
    model = source.model(torch.float32)
    tokens = torch.arange(3, 23)[None]
    assert torch.allclose(model(tokens).logits, whole(input_ids=tokens).logits, atol=1e-5)
    shape = shape_of(source.config())
    assert shape == shape_of(model.config)
    assert (shape.family, shape.num_heads, shape.num_kv_heads) == ("gemma3_text", 8, 4)
    architecture_of(model.config.model_type).attention_layers(model)


def test_a_multimodal_model_without_a_language_model_is_an_error(multimodal, tmp_path):
    path = tmp_path / "copy"
    shutil.copytree(multimodal, path)
    save_file(without("layers.1.self_attn")(load_file(path / "model.safetensors")), path / "model.safetensors")
    with pytest.raises(UserError, match="model.layers.1.self_attn.* are missing"):
        PretrainedModel(str(path)).model(torch.float32)
