"""What is in the tracking store, and what it costs."""

import json
import shutil
import subprocess
import sys
import time

import pytest
from mlflow import MlflowClient

from lightning_modules.causal_lm import CausalLMModule
from registries.registry import UserError
from studies import tracking
from studies.tracking import MLflowRun, flatten, open_tracking

TRAINED = ("replacement=toroidal", "replacement.transfer_steps=6", "tracking=mlflow", "samples.max_new_tokens=2")
LONG = "word " * 200


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A store with all its tables, which take seconds to make."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def store(empty_store, tmp_path):
    """The store that runs will write to."""
    file = tmp_path / "outputs" / "mlflow.db"
    file.parent.mkdir()
    shutil.copy(empty_store, file)
    return MlflowClient(f"sqlite:///{file}")


@pytest.fixture
def only_result(tmp_path):
    def only_result():
        (file,) = (tmp_path / "outputs" / "runs").glob("*/result.json")
        return json.loads(file.read_text())

    return only_result


@pytest.fixture
def tracked(run, store):
    """A tracked run: its folder and its MLflow run."""

    def tracked(*overrides):
        folder = run(*TRAINED, *overrides)
        result = json.loads((folder / "result.json").read_text())
        return folder, store.get_run(result["mlflow_run_id"])

    return tracked


def test_parameters_metrics_artifacts_and_status(tracked, store, tmp_path):
    folder, mlflow_run = tracked(f"samples.prompts=['{LONG}']")
    result = json.loads((folder / "result.json").read_text())
    assert mlflow_run.info.status == "FINISHED"
    assert mlflow_run.info.run_name == folder.name
    assert mlflow_run.data.tags["status"] == "finished"
    assert store.get_experiment(mlflow_run.info.experiment_id).name == "graftlab"

    params = mlflow_run.data.params
    assert params == {key: str(value) for key, value in flatten(result["config"]).items()}
    assert params["replacement.depth"] == "2"
    assert LONG in params["samples.prompts"]

    assert result["metrics"].items() <= mlflow_run.data.metrics.items()
    points = store.get_metric_history(mlflow_run.info.run_id, "train/loss")
    assert [point.step for point in points] == [6, 7, 8, 9]

    artifacts = {file.path for file in store.list_artifacts(mlflow_run.info.run_id)}
    assert artifacts == {"config.yaml", "result.json", "samples.json", "figures"}
    (figure,) = store.list_artifacts(mlflow_run.info.run_id, "figures")
    assert figure.path == "figures/loss.png"
    logged = tmp_path / "outputs" / "artifacts" / mlflow_run.info.run_id / "artifacts" / "result.json"
    assert json.loads(logged.read_text()) == result


def test_the_shown_loss_is_the_final_one(tracked):
    """The UI shows the value with the highest step: not one of a validation in an early or long stage."""
    overfit = ("model.freeze=false", "dataset.train_size=1", "optimizer.lr=0.03", "trainer.max_steps=5")
    folder, mlflow_run = tracked(*overfit, "trainer.val_check_interval=1", "trainer.early_stopping.patience=5")
    final = json.loads((folder / "result.json").read_text())["metrics"]["val/loss"]
    assert mlflow_run.data.metrics["val/loss"] == final


def test_none_writes_no_store(run, tmp_path):
    run("tracking=none")
    assert not list((tmp_path / "outputs").rglob("mlflow*"))


def test_a_failed_run_is_failed(run, store, only_result):
    with pytest.raises(Exception, match="the loss of stage"):
        run(*TRAINED, "optimizer.lr=1e30")
    mlflow_run = store.get_run(only_result()["mlflow_run_id"])
    assert mlflow_run.info.status == "FAILED"
    assert mlflow_run.data.tags["status"] == "nan"


def test_a_resumed_run_goes_on_in_its_mlflow_run(run, store, only_result, monkeypatch):
    step = CausalLMModule.training_step

    def interrupted(self, *arguments):
        if self.stage_name == "next_token" and self.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *arguments)

    own = (*TRAINED, "trainer.checkpoint_every_n_steps=1")
    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(CausalLMModule, "training_step", interrupted)
        run(*own)
    killed = only_result()
    assert killed["status"] == "killed"
    assert store.get_run(killed["mlflow_run_id"]).info.status == "KILLED"
    run(*own, "resume=auto")
    assert only_result()["mlflow_run_id"] == killed["mlflow_run_id"]
    mlflow_run = store.get_run(killed["mlflow_run_id"])
    assert mlflow_run.info.status == "FINISHED"
    assert mlflow_run.data.metrics["val/loss"] == only_result()["metrics"]["val/loss"]
    points = store.get_metric_history(killed["mlflow_run_id"], "train/loss")
    assert [point.step for point in points] == [6, 7, 8, 9]


def test_writes_do_not_grow_with_steps(run, store, monkeypatch):
    calls, log_batch = [], MlflowClient.log_batch

    def spy(*arguments, **options):
        calls.append(options)
        return log_batch(*arguments, **options)

    monkeypatch.setattr(tracking.time, "monotonic", lambda: 0.0)  # less than ten seconds pass
    monkeypatch.setattr(MlflowClient, "log_batch", spy)
    counts = []
    for steps in (4, 40):
        calls.clear()
        run("tracking=mlflow", "replacement=toroidal", "replacement.transfer_steps=0", f"trainer.max_steps={steps}")
        counts.append(sum("metrics" in options for options in calls))
    assert counts[0] == counts[1] <= 3


def test_metrics_are_written_every_ten_seconds(tmp_path, store, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(tracking.time, "monotonic", lambda: now[0])
    logger = MLflowRun(f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}", "test", tmp_path / "outputs", "name")
    logger.log_metrics({"a": 1.0}, step=1)
    assert store.get_run(logger.run_id).data.metrics == {}
    now[0] = 11.0
    logger.log_metrics({"a": 2.0, "epoch": 0}, step=2)
    assert store.get_run(logger.run_id).data.metrics == {"a": 2.0}


FRESH_STORE = """
import os, sys
from pathlib import Path
import mlflow.tracking._tracking_service.utils, mlflow.store.tracking.sqlalchemy_store
from studies.tracking import MLflowRun

children = []
for number in range(3):
    child = os.fork()
    if child == 0:
        print(MLflowRun(sys.argv[1], "graftlab", Path(sys.argv[2]), "name").run_id, flush=True)
        os._exit(0)
    children.append(child)
sys.exit(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))
"""


def test_processes_at_a_fresh_store_at_once(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    command = [sys.executable, "-c", FRESH_STORE, uri, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    client = MlflowClient(uri)
    (experiment,) = [found for found in client.search_experiments() if found.name == "graftlab"]
    runs = {found.info.run_id for found in client.search_runs([experiment.experiment_id])}
    assert len(runs) == 3
    assert runs == set(done.stdout.split())


def test_a_server_that_cannot_be_reached(run, only_result, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(UserError, match="tracking.uri=http://127.0.0.1:9: .*tracking=none"):
        run("tracking=server")
    assert time.monotonic() - started < 20
    assert only_result()["status"] == "failed"


def test_none_is_no_logger(tmp_path):
    assert open_tracking({"name": "none"}, tmp_path, "name", None) is None


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2], "e": {}}
