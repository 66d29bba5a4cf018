import shutil
from types import SimpleNamespace

import pytest

from studies.config.groups import OPERATIONS
from studies.run.code_version import ROOT, _meaning, model_code, plugin_files, run_code


def config(**parts):
    """What of a config decides the code: plugins, and what is done to the model."""
    return SimpleNamespace(**{"plugins": [], **dict.fromkeys(OPERATIONS), **parts})


PLAIN = config()
REPLACED = config(replacement=SimpleNamespace(name="window"))


def copied(folder):
    for name in ("registries", "lightning_modules", "data_modules", "studies"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "tiny_phi_weights"))
    shutil.copy(ROOT / "train.py", folder)
    return folder


@pytest.fixture
def project(tmp_path):
    """A copy of the project's code that may be changed."""
    return copied(tmp_path / "project")


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    """What a copy counts as before it is changed: with a model that nothing is done to, and with a replacement."""
    project = copied(tmp_path_factory.mktemp("unchanged") / "project")
    return model_code(PLAIN, project), run_code(REPLACED, project)


def append(file, text):
    """Change a file, for what a process that starts after it sees."""
    file.write_text(f"{file.read_text()}\n{text}\n")
    _meaning.cache_clear()


MEANINGS = {}


@pytest.fixture
def read_anew(monkeypatch):
    """Every file is read as it is now; of copies that are alike, one."""

    def meaning(file):
        content = file.read_bytes()
        if content not in MEANINGS:
            MEANINGS[content] = _meaning.__wrapped__(file)
        return MEANINGS[content]

    monkeypatch.setattr("studies.run.code_version._meaning", meaning)


@pytest.mark.parametrize(
    ("file", "of_models", "of_runs"),
    [
        ("registries/architectures.py", True, True),
        ("registries/models/random.py", True, True),
        ("lightning_modules/nll.py", True, True),
        ("lightning_modules/stages/kl.py", True, True),
        ("data_modules/blocks.py", True, True),
        ("data_modules/datasets/pydoc.py", False, False),  # tokens count themselves
        ("registries/attention/window.py", False, True),
        ("registries/adapters/ridge.py", False, False),  # this run has no adapter
        ("studies/run/ratios.py", False, True),
        ("train.py", False, True),
        ("studies/report/display.py", False, False),
        ("studies/run/mlflow_run.py", False, False),
    ],
)
def test_code_counts_for_what_it_computes(read_anew, project, unchanged, file, of_models, of_runs):
    append(project / file, "ADDED = 1")
    changed = model_code(PLAIN, project), run_code(REPLACED, project)
    assert (changed[0] != unchanged[0], changed[1] != unchanged[1]) == (of_models, of_runs)


def test_a_copy_counts_as_any_other(read_anew, project, unchanged):
    assert (model_code(PLAIN, project), run_code(REPLACED, project)) == unchanged


def test_words_about_the_code_do_not_count(project):
    before = run_code(REPLACED, project)
    file = project / "registries" / "attention" / "window.py"
    append(file, "# A comment.")
    file.write_text(file.read_text().replace('"""', '"""New words. ', 1))
    assert run_code(REPLACED, project) == before


def test_what_a_plugin_imports_of_its_own_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a_core.py").write_text("import torch\nfrom a_helper import width\nfrom registries import ATTENTION\n")
    (tmp_path / "a_helper.py").write_text("width = 1\n")
    (tmp_path / "stranger.py").write_text("width = 2\n")
    assert {file.name for file in plugin_files(["a_core"])} == {"a_core.py", "a_helper.py"}
    cfg = config(plugins=["a_core"])
    before = model_code(cfg)
    assert before != model_code(PLAIN)
    append(tmp_path / "a_helper.py", "width = 3")
    assert model_code(cfg) != before


def test_what_is_imported_is_what_runs(project):
    """A file that is edited while a sweep runs does not change what its later jobs are called."""
    before = model_code(PLAIN, project)
    file = project / "lightning_modules" / "nll.py"
    file.write_text(f"{file.read_text()}\nADDED = 1\n")
    assert model_code(PLAIN, project) == before


def test_a_package_of_plugins(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "a_package"
    (package / "inside").mkdir(parents=True)
    for name, text in {
        "__init__.py": "",
        "core.py": "from . import sizes\nfrom .inside.deep import depth\n",
        "sizes.py": "",
        "unused.py": "",
        "inside/__init__.py": "",
        "inside/deep.py": "depth = 1",
    }.items():
        (package / name).write_text(text)
    found = {file.relative_to(tmp_path.resolve()).as_posix() for file in plugin_files(["a_package.core"])}
    assert found == {
        f"a_package/{name}" for name in ("__init__.py", "core.py", "sizes.py", "inside/__init__.py", "inside/deep.py")
    }
