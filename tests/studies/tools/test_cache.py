import pytest

from registries.registry import UserError
from studies.tools import cache


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, size in {"tokens/a": 10, "activations/place/b": 200, "activations/place/c": 300}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    monkeypatch.setenv("GRAFTLAB_CACHE", str(tmp_path))
    return tmp_path


def test_sizes(folder):
    assert cache.sizes(folder) == {"activations": 500, "tokens": 10}
    assert cache.sizes(folder / "nowhere") == {}


@pytest.mark.parametrize(
    ("kind", "freed", "left"), [("activations", 500, {"tokens"}), ("tokens", 10, {"activations"}), ("all", 510, set())]
)
def test_clearing_a_kind_leaves_the_others(kind, freed, left, folder, capsys):
    cache.main(["clear", kind])
    assert {path.name for path in folder.iterdir()} == left
    assert f"freed {freed / 1e6:,.1f} MB" in capsys.readouterr().out


def test_without_arguments_it_shows_the_sizes_and_removes_nothing(folder, capsys):
    cache.main([])
    assert str(folder / "activations") in capsys.readouterr().out
    assert cache.sizes(folder) == {"activations": 500, "tokens": 10}


def test_an_unknown_kind_removes_nothing(folder):
    with pytest.raises(UserError, match="has no 'activation'; did you mean 'activations'"):
        cache.main(["clear", "activation"])
    with pytest.raises(UserError, match="cannot read 'clean'"):
        cache.main(["clean"])
    assert cache.sizes(folder) == {"activations": 500, "tokens": 10}
