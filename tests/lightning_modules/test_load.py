import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from data_modules.tokens import token_bytes
from lightning_modules import build_module, load_module
from lightning_modules.dtypes import BFLOAT16_WIDTH, resolve_dtype
from lightning_modules.weights import TRAINED_WEIGHTS
from registries import MODELS, UserError
from registries.models.random import byte_tokenizer
from tests.rules import logits, tokens


@pytest.fixture
def cfg(tmp_path):
    return {
        "seed": 3,
        "plugins": [],
        "cache_dir": str(tmp_path),
        "model": {"name": "random", "dtype": "float32", "freeze": True, "num_kv_heads": 2},
        "placement": {"name": "none"},
        "adapter": {"name": "none"},
        "compressor": {"name": "none"},
        "replacement": {
            "name": "toroidal", "layers": [0, -1], "init": "random", "depth": 4, "transfer_steps": 5,
            "transfer_lr": 1e-3, "transfer_batch_size": 1,
        },
        "recovery": {},
        "dataset": {"name": "periodic", "batch_size": 1},
        "activations": {"cache": True, "max_gb": 1.0},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "trainer": {
            "name": "cpu", "gradient_clip_val": 1.0, "max_steps": 0, "max_epochs": None, "accumulate_grad_batches": 1,
            "loss_chunk_size": None,
        },
    }  # fmt: skip


@pytest.fixture
def run_folder(cfg, tmp_path):
    """The folder of a run that trained the replaced layers, and its logits."""
    folder, module = tmp_path / "run", build_module(cfg)
    (folder / TRAINED_WEIGHTS).parent.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(cfg), folder / "config.yaml")
    (folder / "result.json").write_text(json.dumps({"status": "finished", "stages": {"transfer": {}}}))
    trained = {name: p + 0.1 for name, p in module.model.named_parameters() if ".self_attn." in name}
    save_file(trained, folder / TRAINED_WEIGHTS)
    for name, tensor in trained.items():
        module.model.get_parameter(name).data = tensor
    return folder, logits(module.model, tokens(module.model, 2, 20))


def test_build_module_operates_on_the_model(cfg):
    module = build_module(cfg)
    assert [layer.self_attn.core.depth for layer in module.model.model.layers] == [4, 4]
    assert module.surgery.layers == [0, 1]
    assert module.tokenizer("ab")["input_ids"] == byte_tokenizer()("ab")["input_ids"]
    assert not any(parameter.requires_grad for parameter in module.model.parameters())
    assert (module.seed, module.gradient_clip_val) == (3, 1.0)
    assert module(tokens(module.model, 1, 5)).logits.shape == (1, 5, 512)


def test_it_takes_an_omegaconf_config_too(cfg):
    text = torch.arange(20)[None]
    modules = build_module(cfg), build_module(OmegaConf.create(cfg))
    assert logits(modules[0].model, text).equal(logits(modules[1].model, text))


def test_weights_follow_from_the_seed(cfg):
    text = torch.arange(20)[None]
    torch.manual_seed(99)
    same = [logits(build_module(cfg).model, text) for _ in range(2)]
    assert same[0].equal(same[1])
    assert not same[0].equal(logits(build_module(cfg | {"seed": 4}).model, text))


def test_without_a_replacement_the_model_is_as_it_was(cfg):
    module = build_module(cfg | {"replacement": {"name": "none"}})
    assert module.surgery is None
    assert not hasattr(module.model.model.layers[0].self_attn, "core")


def test_a_tokenizer_with_too_many_tokens_is_refused(cfg, tmp_path):
    folder = tmp_path / "model"
    config = LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    cfg["model"] = {"name": "phi2", "path": str(folder), "dtype": "float32", "freeze": True}
    with pytest.raises(UserError, match="the tokenizer has 257 tokens, but the model's vocabulary has 256"):
        build_module(cfg)


def test_a_tokenizer_whose_numbers_have_holes_is_as_large_as_the_largest(cfg, tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {**byte_tokenizer().get_vocab(), "after a hole": 600}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="after a hole"))
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "tokenizer")
    cfg["model"] |= {"tokenizer": str(tmp_path / "tokenizer"), "vocab_size": 601}
    assert token_bytes(build_module(cfg).tokenizer).shape == (601,)
    cfg["model"]["vocab_size"] = 600
    with pytest.raises(UserError, match="vocab_size=600 is too small for the 601 tokens"):
        build_module(cfg)


@pytest.mark.parametrize("as_text", [True, False])
def test_load_module_brings_the_trained_weights_back(run_folder, as_text):
    folder, expected = run_folder
    module = load_module(str(folder) if as_text else folder)
    assert logits(module.model, tokens(module.model, 2, 20)).equal(expected)


def test_what_trained_in_fp32_stays_fp32_in_a_bf16_model(run_folder):
    folder, _ = run_folder
    cfg = OmegaConf.load(folder / "config.yaml")
    cfg.model.dtype = "bfloat16"
    OmegaConf.save(cfg, folder / "config.yaml")
    model = load_module(folder).model
    assert model.model.layers[0].self_attn.q_proj.weight.dtype == torch.float32
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert logits(model, tokens(model, 1, 5)).dtype == torch.bfloat16


def test_a_folder_that_is_no_runs(tmp_path):
    with pytest.raises(UserError, match="is not a run's folder: it has no config.yaml"):
        load_module(tmp_path)


def test_a_run_that_has_not_finished(run_folder):
    (run_folder[0] / TRAINED_WEIGHTS).unlink()
    with pytest.raises(UserError, match="has no trained weights .*the run has not finished"):
        load_module(run_folder[0])


def test_a_run_that_had_nothing_to_train_has_no_weights(run_folder, cfg):
    folder, _ = run_folder
    (folder / "result.json").write_text(json.dumps({"status": "finished", "stages": {}}))
    (folder / TRAINED_WEIGHTS).unlink()
    text = torch.arange(20)[None]
    assert logits(load_module(folder).model, text).equal(logits(build_module(cfg).model, text))
    (folder / "result.json").write_text(json.dumps({"status": "killed"}))
    with pytest.raises(UserError, match="the run has not finished"):
        load_module(folder)


@pytest.mark.parametrize("size", [0, 20, 2000])
def test_damaged_weights(run_folder, size):
    file = run_folder[0] / TRAINED_WEIGHTS
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match="is damaged .*run the study again"):
        load_module(run_folder[0])


@pytest.mark.parametrize("strange", [{"other.weight": torch.ones(2)}, {"lm_head.weight": torch.ones(3, 3)}])
def test_weights_of_another_config(run_folder, strange):
    save_file(strange, run_folder[0] / TRAINED_WEIGHTS)
    with pytest.raises(UserError, match="is of another config: .*does not fit this model"):
        load_module(run_folder[0])


WIDE, NARROW = (MODELS.build("random", hidden_size=width).config() for width in (BFLOAT16_WIDTH, BFLOAT16_WIDTH - 64))


@pytest.mark.parametrize(
    ("dtype", "frozen", "fast", "config", "expected"),
    [
        ("auto", True, True, WIDE, torch.bfloat16),
        ("auto", True, True, None, torch.bfloat16),
        ("auto", True, True, NARROW, torch.float32),
        ("auto", True, False, WIDE, torch.float32),
        ("auto", False, True, WIDE, torch.float32),
        ("float32", True, True, WIDE, torch.float32),
        ("bfloat16", False, False, NARROW, torch.bfloat16),
    ],
)
def test_the_dtype_of_the_weights(dtype, frozen, fast, config, expected, monkeypatch):
    monkeypatch.setattr("lightning_modules.dtypes.fast_bfloat16", lambda: fast)
    assert resolve_dtype(dtype, frozen, config) == expected


@pytest.mark.parametrize(("bfloat16", "gpu", "expected"), [
    (True, True, torch.bfloat16), (False, True, torch.float16), (False, False, torch.float32),
])  # fmt: skip
def test_a_gpu_without_bf16_keeps_frozen_weights_in_fp16(bfloat16, gpu, expected, monkeypatch):
    monkeypatch.setattr("lightning_modules.dtypes.fast_bfloat16", lambda: bfloat16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert resolve_dtype("auto", True, WIDE) == expected
    assert resolve_dtype("auto", False, WIDE) == torch.float32


@pytest.mark.parametrize("content", ["", "[]", "model: {", "5", "model: {name: random}", "a: ${b}"])
def test_a_damaged_config_is_taken_from_the_result(run_once, content, tmp_path, caplog):
    folder = Path(shutil.copytree(run_once("replacement=toroidal", "replacement.transfer_steps=0"), tmp_path / "run"))
    weights = load_module(folder).model.state_dict()
    (folder / "config.yaml").write_text(content)
    loaded = load_module(folder).model.state_dict()
    assert all(loaded[name].equal(tensor) for name, tensor in weights.items())
    assert "config.yaml is damaged" in caplog.text
    (folder / "result.json").write_text(content)
    with pytest.raises(UserError, match="result.json is damaged"):
        load_module(folder)


@pytest.mark.parametrize(
    ("operation", "file"),
    [
        (("replacement=toroidal", "replacement.transfer_steps=0"), "checkpoints/trained.safetensors"),
        (("placement=attention",), "adapter/adapter_model.safetensors"),
    ],
)
def test_a_flipped_bit_in_what_was_trained(run, operation, file):
    folder = run(*operation)
    content = bytearray((folder / file).read_bytes())
    content[-3] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=f"{Path(file).name} is damaged .*checksum"):
        load_module(folder)


def test_a_run_of_a_relative_folder_is_loaded_from_anywhere(run, tmp_path, monkeypatch):
    """The run and the adapter that it trained name the models by their absolute paths."""
    source = MODELS.build("random")
    source.model(torch.float32).save_pretrained(tmp_path / "model")
    source.tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    folder = run(
        "model=phi2", "model.path=./model", "model.dtype=float32", "placement=attention", "trainer.max_steps=1",
        "recovery=[kl]", "recovery.kl.teacher=model", "recovery.kl.train=replaced",
    )  # fmt: skip
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    load_module(folder)
    config = json.loads((folder / "result.json").read_text())["config"]
    adapter = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    named = [config["model"]["path"], config["recovery"]["kl"]["teacher"], adapter["base_model_name_or_path"]]
    assert named == [str(tmp_path / "model")] * 3
