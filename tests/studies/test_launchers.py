"""Sweeps whose jobs run in processes of their own: the same numbers as in one process, and shared cores."""

import json
import os

import pytest
from hydra.core.plugins import Plugins

from registries.option import CONF
from registries.registry import UserError
from studies.config.command_line import check_command_line
from studies.config.launch import launch

PACKAGES = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "sweeps"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
}
FOUR_JOBS = ("-m", "replacement=toroidal", "replacement.depth=1,2", "replacement.transfer_steps=2", "seed=0,1")
MEASURED = ("time/", "throughput/", "memory/")  # of the machine, and not of the model


@pytest.fixture(scope="module")
def workers():
    """Those of joblib wait for more work, for minutes: they are ended."""
    pytest.importorskip(PACKAGES["joblib"][0])
    yield
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True)


def metrics_of(output_dir):
    """Depth and seed of each job -> its metrics, without those that are not the same in every run."""
    results = [json.loads(file.read_text()) for file in output_dir.glob("runs/*/result.json")]
    return {
        (result["config"]["replacement"]["depth"], result["config"]["seed"]): {
            name: value for name, value in result["metrics"].items() if not name.startswith(MEASURED)
        }
        for result in results
    }


def test_every_launcher_is_known_here():
    assert {file.stem for file in (CONF / "hydra" / "launcher").glob("*.yaml")} == set(PACKAGES)


@pytest.mark.parametrize("launcher", PACKAGES)
def test_a_launcher_that_is_not_installed_is_told_with_the_command_that_installs_it(launcher, monkeypatch):
    plugins = Plugins.instance()
    left = {name: kind for name, kind in plugins.class_name_to_class.items() if not name.startswith("hydra_plugins.")}
    monkeypatch.setattr(plugins, "class_name_to_class", left)
    extra = PACKAGES[launcher][1]
    with pytest.raises(UserError) as caught:
        check_command_line([f"hydra/launcher={launcher}", "seed=0,1", "hydra.verbose=false"], True, "config")
    assert caught.value.messages == [f"hydra/launcher={launcher} needs the extra {extra}: pip install -e '.[{extra}]'"]


@pytest.mark.parametrize("launcher", PACKAGES)
def test_a_launcher_that_is_installed_passes_the_check(launcher):
    pytest.importorskip(PACKAGES[launcher][0])
    line = check_command_line([f"hydra/launcher={launcher}", "seed=0,1"], True, "config")
    assert line.sweeping and not line.in_turn


@pytest.mark.full_product  # half a minute
@pytest.mark.timeout(600)
def test_jobs_of_joblib_have_the_numbers_of_jobs_in_one_process(command, forked, small_in, tmp_path):
    pytest.importorskip(PACKAGES["joblib"][0])
    alone = forked("train.py", *small_in(tmp_path / "alone"), *FOUR_JOBS)
    assert alone.returncode == 0, alone.stderr
    # A fork of a process with threads cannot start the processes of joblib: it waits forever.
    beside = command(
        "train.py", *small_in(tmp_path / "beside"), *FOUR_JOBS, "hydra/launcher=joblib", MKL_NUM_THREADS="1"
    )
    assert beside.returncode == 0, beside.stderr
    numbers = metrics_of(tmp_path / "alone")
    assert len(numbers) == 4 and all("val/loss" in metrics for metrics in numbers.values())
    assert metrics_of(tmp_path / "beside") == numbers
    (summary,) = tmp_path.glob("beside/sweeps/*/summary.json")
    assert json.loads(summary.read_text())["failed"] == []


def test_joblib_shares_the_cores_among_its_jobs(workers, small, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)  # torch follows it rather than OMP_NUM_THREADS

    def note_threads(cfg):
        import torch

        (tmp_path / f"threads.{cfg.seed}").write_text(str(torch.get_num_threads()))

    launch(note_threads, "config", small("seed=0,1", "-m", "hydra/launcher=joblib"))
    threads = [int((tmp_path / f"threads.{seed}").read_text()) for seed in (0, 1)]
    assert threads == [max(1, os.cpu_count() // 2)] * 2


FATAL = """
import os, signal

from lightning_modules import OPTIMIZERS
from lightning_modules.optimizers.sgd import sgd


@OPTIMIZERS.register("fatal")
def fatal(parameters, lr: float = 0.1, kills: bool = False):
    if kills:
        os.kill(os.getpid(), signal.SIGKILL)
    return sgd(parameters, lr)
"""


@pytest.mark.full_product  # a minute
@pytest.mark.timeout(600)
def test_a_sweep_outlives_the_process_of_a_job(command, small_in, tmp_path):
    pytest.importorskip(PACKAGES["joblib"][0])
    (tmp_path / "fatal.py").write_text(FATAL)
    trained = ("replacement=toroidal", "replacement.transfer_steps=0", "trainer.max_steps=1")
    lines = small_in(tmp_path / "outputs", *trained, "plugins=[fatal]", "optimizer=fatal")
    jobs = ("-m", "optimizer.kills=false,true", "hydra/launcher=joblib")
    ended = command("train.py", *lines, *jobs, PYTHONPATH=str(tmp_path), MKL_NUM_THREADS="1")
    assert ended.returncode == 1, ended.stderr
    (summary,) = tmp_path.glob("outputs/sweeps/*/summary.json")
    content = json.loads(summary.read_text())
    assert content["jobs"] == {"finished": 1, "killed": 1, "planned": 2}
    assert [failure["job"] for failure in content["failed"]] == [1] and "2 times" in content["failed"][0]["cause"]
