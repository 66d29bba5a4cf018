import runpy
import sys
from pathlib import Path

import pytest

import studies.tools

FILES = Path(studies.tools.__path__[0]).glob("*.py")
TOOLS = sorted(file.stem for file in FILES if 'if __name__ == "__main__"' in file.read_text())


@pytest.fixture
def call(monkeypatch, capsys):
    """Start a tool as `python -m studies.<name>` does. Returns its status, and what it printed."""

    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.delitem(sys.modules, f"studies.tools.{name}", raising=False)
        status = 0
        try:
            runpy.run_module(f"studies.tools.{name}", run_name="__main__")
        except SystemExit as end:
            status = end.code
        return status, capsys.readouterr()

    return call


def test_there_are_tools():
    assert {"cache", "export", "layer_effects", "placements", "results_page", "unshifted"} <= set(TOOLS)


@pytest.mark.parametrize("name", sorted({*TOOLS} - {"cache", "placements"}))  # which need no arguments
def test_without_arguments_a_tool_prints_its_usage(name, call):
    status, printed = call(name)
    assert status == 2
    assert f"usage: python -m studies.tools.{name}" in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_says_what_it_is_for(name, call):
    status, printed = call(name, "--help")
    assert status == 0
    assert f"python -m studies.tools.{name}" in printed.out


@pytest.mark.parametrize("name", TOOLS)
def test_what_is_not_there_is_told(name, call, tmp_path):
    status, printed = call(name, f"{tmp_path}/none", f"{tmp_path}/nowhere")
    assert status == 2
    assert "error" in printed.err
    assert "Traceback" not in printed.err


def test_too_many_arguments(call):
    status, printed = call("export", *"abcd")
    assert (status, "usage: python -m studies.tools.export" in printed.err) == (2, True)
