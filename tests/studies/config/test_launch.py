"""The command line, as a user meets it."""

import json
import sys

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

import train
from studies.config.launch import TRACEBACKS, launch


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path):
    """What a command line that is refused prints."""
    monkeypatch.chdir(tmp_path)

    def refused(*arguments):
        with pytest.raises(SystemExit) as caught:
            launch(train.job, "config", list(arguments))
        assert caught.value.code == 2
        assert list(tmp_path.iterdir()) == []
        return capsys.readouterr().err

    return refused


def test_refused_with_status_2_and_nothing_written(command, tmp_path):
    done = command("train.py", "model=random", "replacement=toroidl", "trainer.max_step=1", "output_dir=there")
    assert done.returncode == 2
    assert done.stdout == ""
    heading, *lines = done.stderr.splitlines()
    assert heading == "2 errors:"
    assert len(lines) == 2
    assert "'toroidal'" in done.stderr
    assert "'trainer.max_steps'" in done.stderr
    assert list((tmp_path / "here").iterdir()) == []


def test_a_sweep_with_one_wrong_job_does_not_start(refused):
    text = refused("-m", "model=random", "replacement=toroidal", "replacement.depth=2,3")
    assert text.startswith("error:\n")
    assert "replacement.depth=3" in text


def test_a_list_without_the_sweep_flag(refused):
    assert "add -m" in refused("model=random", "seed=1,2")


@pytest.mark.parametrize("arguments", [["--cfg", "job"], ["--help"]])
def test_showing_the_config_imports_nothing_heavy(command, tmp_path, arguments):
    script = tmp_path / "show.py"
    script.write_text(
        "import atexit, runpy, sys\n"
        "heavy = ('torch', 'lightning', 'mlflow', 'transformers', 'torchmetrics', 'peft', 'pydantic')\n"
        "atexit.register(lambda: print('imported:', [name for name in heavy if name in sys.modules]))\n"
        "sys.argv = sys.argv[1:]\n"
        "sys.path.insert(0, sys.argv[0].rpartition('/')[0])\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    done = command(str(script), train.__file__, *arguments)
    assert done.returncode == 0, done.stderr
    assert "smollm2_135m" in done.stdout
    assert done.stdout.splitlines()[-1] == "imported: []"


PLUGIN = """
from torch import nn
from registries import ATTENTION
from registries.attention.standard import StandardAttention


class Scaled(StandardAttention):
    keeps_function = False

    def __init__(self, shape, factor: float = 0.5):
        super().__init__(shape)
        self.factor = factor

    def forward(self, *args):
        return self.factor * super().forward(*args)


@ATTENTION.register("my_core")
class MyCore(Scaled):
    pass


@ATTENTION.register("x")
class X(Scaled):
    def __init__(self, shape, factor: float):
        super().__init__(shape, factor)
"""
X_YAML = "{name: x, layers: [0], init: copy, factor: 0.25, transfer_steps: 0, transfer_lr: 0.1, transfer_batch_size: 2}"


@pytest.fixture
def plugin(tmp_path):
    """The folder to be put on PYTHONPATH: `my_core` has no YAML, `x` has one beside its module."""
    folder = tmp_path / "third_party"
    (folder / "conf" / "replacement").mkdir(parents=True)
    (folder / "my_components.py").write_text(PLUGIN)
    (folder / "conf" / "replacement" / "x.yaml").write_text(X_YAML)
    return str(folder)


def test_components_of_a_plugin_work_from_the_command_line(forked, plugin, small, tmp_path):
    own = ["plugins=[my_components]", "replacement=my_core,x", "replacement.factor=0.25,0.75", "trainer.max_steps=0"]
    done = forked("train.py", *small(*own, "replacement.transfer_steps=0"), "-m", PYTHONPATH=plugin)
    assert done.returncode == 0, done.stderr
    results = [json.loads(file.read_text()) for file in (tmp_path / "outputs" / "runs").glob("*/result.json")]
    done = {(r["config"]["replacement"]["name"], r["config"]["replacement"]["factor"]): r for r in results}
    assert done.keys() == {("my_core", 0.25), ("my_core", 0.75), ("x", 0.25), ("x", 0.75)}
    assert {r["status"] for r in results} == {"finished"}
    losses = {key: r["metrics"]["swap/loss"] for key, r in done.items()}
    assert losses["my_core", 0.25] == losses["x", 0.25] != losses["x", 0.75] == losses["my_core", 0.75]


def test_options_of_a_plugin_are_checked(forked, plugin):
    base = ["model=random", "plugins=[my_components]", "replacement=my_core"]
    done = forked("train.py", *base, "replacement.factr=1", "replacement.factor=much", PYTHONPATH=plugin)
    assert done.returncode == 2
    assert "'replacement.factor'" in done.stderr
    assert "factor='much'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_config_of_a_plugin_is_shown(forked, plugin):
    done = forked("train.py", "plugins=[my_components]", "replacement=x", "--cfg", "job", PYTHONPATH=plugin)
    assert done.returncode == 0, done.stderr
    assert "factor: 0.25" in done.stdout


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["cannot import 'no_plugin'", "PYTHONPATH"]),
        ("import no_such_library", ["cannot import 'no_plugin'", "no_such_library"]),
        ("def broken(:", ["'no_plugin' fails to import", "SyntaxError"]),
    ],
)
def test_a_plugin_that_cannot_be_imported(refused, monkeypatch, tmp_path_factory, content, parts):
    folder = tmp_path_factory.mktemp("plugin")
    if content is not None:
        (folder / "no_plugin.py").write_text(content)
    monkeypatch.syspath_prepend(folder)
    text = refused("model=random", "plugins=[no_plugin]")
    sys.modules.pop("no_plugin", None)
    assert [part for part in parts if part not in text] == []


def test_tab_completion(command):
    done = command("train.py", "-sc", "install=bash")
    assert done.returncode == 0, done.stderr
    assert "complete" in done.stdout
    done = command("train.py", "-sc", "query=bash", COMP_LINE="train.py replacement=t")
    assert done.stdout.split() == ["replacement=toroidal"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["-m", "--cfg", "job"], "--multirun and --cfg exclude each other"),
        (["--resolve"], "add --cfg job"),
        (["--experimental-rerun", "file"], "resume="),
        (["--config-dir", "/no/folder"], "/no/folder is no folder"),
        (["--config-name", "nothing"], "nothing"),
        (["--config-path", "/no/folder"], "/no/folder"),
        (["--cfg", "job", "--resolve", "seed=${nowhere}"], "nowhere"),
        (["--cfg", "job", "seed=[1"], "seed=[1"),
        (["model=random", "hydra.sweeper=null", "-m"], "weeper is not configured"),
    ],
)
def test_flags_that_cannot_be_followed_are_told_in_one_message(refused, arguments, part):
    text = refused(*arguments)
    assert part in text
    assert "Traceback" not in text


def test_a_fault_of_ours_in_the_check_is_one_line(refused, monkeypatch):
    def fail(*arguments, **options):
        raise ZeroDivisionError("no such thing")

    monkeypatch.setattr("studies.config.check.config_errors", fail)
    text = refused("model=random")
    assert text.splitlines() == [
        "error:",
        f"  this command line cannot be checked: no such thing ({TRACEBACKS}=1 shows where)",
    ]


def test_a_sweep_starts_without_composing_all_of_its_jobs_first(small, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    compositions, at_first = [], []
    load = ConfigLoaderImpl.load_sweep_config
    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", lambda *a, **o: compositions.append(a) or load(*a, **o))
    launch(lambda cfg: at_first.append(len(compositions)), "config", small("seed=range(0,5)", "-m", "preflight=false"))
    assert at_first[0] <= 2
    assert len(at_first) == 5
