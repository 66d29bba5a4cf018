"""The entry point: one job, and sweeps that survive what happens in them."""

import json
import os
import signal
import sys
import weakref

import pytest

import data_modules
import score
import train
from lightning_modules.causal_lm import CausalLMModule
from studies.config.launch import launch

TRAINED = ("replacement=toroidal", "replacement.transfer_steps=0")
DIVERGES = "optimizer.lr=1e30,1e-3"


@pytest.fixture
def start(small, monkeypatch, tmp_path):
    """Start `train.py` with these arguments in this process. Returns the results of all runs, the oldest first."""
    monkeypatch.chdir(tmp_path)

    def start(*arguments, flags=()):
        launch(train.job, "config", [*flags, *small(*arguments)])
        return results(tmp_path)

    return start


def results(tmp_path):
    files = (tmp_path / "outputs" / "runs").glob("*/result.json")
    return [json.loads(file.read_text()) for file in sorted(files, key=lambda file: file.stat().st_ctime)]


def test_one_job_from_the_command_line(command, small, tmp_path):
    done = command("train.py", *small(*TRAINED))
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    assert done.stdout.splitlines()[-1] == str(folder)
    assert "trained in stage next_token" in done.stdout
    assert "loading the model" in done.stderr
    assert "loading the model" not in done.stdout
    assert "arning" not in done.stderr
    assert list((tmp_path / "here").iterdir()) == []


def test_a_user_error_while_running_is_one_line(start, capsys, tmp_path):
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(SystemExit) as caught:
        start(f"dataset.path={tmp_path / 'short.txt'}")
    assert caught.value.code == 2
    heading, line = capsys.readouterr().err.splitlines()
    assert heading == "error:"
    assert "dataset.block_size" in line
    assert not (tmp_path / "outputs").exists()


def test_a_run_that_diverges_is_recorded_as_nan(start, tmp_path):
    with pytest.raises(SystemExit) as caught:
        start(*TRAINED, "optimizer.lr=1e30")
    assert caught.value.code == 1
    (result,) = results(tmp_path)
    assert result["status"] == "nan"
    assert result["error"].startswith("NonFiniteLoss: the loss of stage 'next_token' is nan at step")


def test_a_sweep_goes_on_after_a_failed_job_and_gives_its_memory_back(start, monkeypatch, capsys, tmp_path):
    modules, alive, create = [], [], CausalLMModule.__init__

    def spy(self, *arguments, **options):
        alive.append(sum(module() is not None for module in modules))
        modules.append(weakref.ref(self))
        create(self, *arguments, **options)

    monkeypatch.setattr(CausalLMModule, "__init__", spy)
    with pytest.raises(SystemExit) as caught:
        start(*TRAINED, DIVERGES, flags=["-m"])
    assert caught.value.code == 1
    first, second = results(tmp_path)
    assert (first["status"], second["status"]) == ("nan", "finished")
    assert second["config"]["optimizer"]["lr"] == 1e-3
    assert alive == [0, 0]
    assert "this job failed, the sweep goes on: NonFiniteLoss" in capsys.readouterr().err


def test_a_sweep_stops_after_a_failed_job_if_asked_to(start, tmp_path):
    with pytest.raises(SystemExit) as caught:
        start(*TRAINED, DIVERGES, "on_failure=stop", flags=["-m"])
    assert caught.value.code == 1
    (result,) = results(tmp_path)
    assert result["status"] == "nan"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("script", ["train.py", "score.py"])
def test_a_signal_before_there_is_a_run(script, number, small, monkeypatch, tmp_path, capsys):
    """It ends with the status that shells give to it, and with one line."""

    def read(*arguments):
        os.kill(os.getpid(), number)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data_modules, "build_data_module", read)
    job, name = {"train.py": (train.job, "config"), "score.py": (score.job, "score")}[script]
    with pytest.raises(SystemExit) as caught:
        launch(job, name, small())
    assert caught.value.code == 128 + number
    assert capsys.readouterr().err == f"stopped by {number.name}\n"
    assert not (tmp_path / "outputs").exists()


def test_ctrl_c_ends_the_sweep(start, monkeypatch, tmp_path):
    step = CausalLMModule.training_step

    def interrupted(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, *arguments)

    monkeypatch.setattr(CausalLMModule, "training_step", interrupted)
    with pytest.raises(SystemExit) as caught:
        start(*TRAINED, "seed=1,2", flags=["-m"])
    assert caught.value.code == 130
    (result,) = results(tmp_path)
    assert result["status"] == "killed"


def test_plugins_are_imported_where_the_job_runs(small, tmp_path, monkeypatch):
    cfg = train.compose(small())
    (tmp_path / "some_plugin.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    cfg.plugins = ["some_plugin"]
    train.run(cfg)
    assert sys.modules.pop("some_plugin")


def test_a_sweep_continues_with_what_is_missing(start):
    assert len(start("seed=1")) == 1
    runs = start("seed=1,2", "skip_finished=true", flags=["-m"])
    assert [run["config"]["seed"] for run in runs] == [1, 2]
