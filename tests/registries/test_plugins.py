import sys

import pytest

import registries.plugins
from registries import ATTENTION, UserError
from registries.plugins import import_plugins

PLUGIN = """
from registries import ATTENTION
from registries.attention.standard import StandardAttention


@ATTENTION.register({name!r})
class Core(StandardAttention):
    pass
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A module that registers an attention replacement of the same name."""

    def make(name):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.py").write_text(PLUGIN.format(name=name))
        monkeypatch.syspath_prepend(folder)
        return folder

    before = dict(ATTENTION._components) if ATTENTION.names() else {}
    modules = set(sys.modules)
    yield make
    ATTENTION._components = before
    for module in set(sys.modules) - modules:
        del sys.modules[module]


def test_a_plugin_registers_its_components(plugin):
    plugin("graftlab_plugin_one")
    assert import_plugins(["graftlab_plugin_one"]) == []
    assert "graftlab_plugin_one" in ATTENTION.names()
    assert import_plugins(["graftlab_plugin_one"]) == []  # again, as a second job of a sweep does


def test_the_config_folder_beside_it_is_returned(plugin):
    folder = plugin("graftlab_plugin_two")
    (folder / "conf" / "replacement").mkdir(parents=True)
    assert import_plugins(["graftlab_plugin_two"]) == [folder / "conf"]


def test_entry_points_are_imported_first(plugin, monkeypatch):
    plugin("graftlab_plugin_three")

    class Point:
        module = "graftlab_plugin_three"

    monkeypatch.setattr(registries.plugins, "entry_points", lambda group: [Point] * (group == "graftlab.components"))
    import_plugins([])
    assert "graftlab_plugin_three" in ATTENTION.names()


def test_a_module_that_cannot_be_imported(plugin):
    with pytest.raises(UserError, match="cannot import 'graftlab_missing'.*is its folder on PYTHONPATH"):
        import_plugins(["graftlab_missing"])
    (plugin("graftlab_plugin_four") / "graftlab_plugin_four.py").write_text("import graftlab_missing")
    with pytest.raises(UserError, match="cannot import 'graftlab_plugin_four' .No module named 'graftlab_missing'"):
        import_plugins(["graftlab_plugin_four"])
    (plugin("graftlab_plugin_five") / "graftlab_plugin_five.py").write_text("1 / 0")
    with pytest.raises(UserError, match="'graftlab_plugin_five' fails to import: ZeroDivisionError: division by zero"):
        import_plugins(["graftlab_plugin_five"])


def test_a_module_without_a_file_has_no_config_folder():
    assert import_plugins(["sys"]) == []


def test_a_module_that_ends_its_process_is_told(tmp_path, monkeypatch):
    (tmp_path / "leaves_at_once.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="'leaves_at_once' fails to import: SystemExit: 3"):
        import_plugins(["leaves_at_once"])
