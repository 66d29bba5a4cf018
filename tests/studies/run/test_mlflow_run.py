"""What is in the tracking store, and what it costs."""

import json
import os
import re
import shutil
import socket
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient

from lightning_modules.causal_lm import CausalLMModule
from registries.registry import UserError
from studies.config.flat import flatten
from studies.run import mlflow_run as tracking
from studies.run import mlflow_store as store_module
from studies.run.curves import read_curves
from studies.run.mlflow_run import MLflowRun
from studies.run.mlflow_store import DEFAULT_STORE, open_store
from studies.tools.track import track

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
    assert mlflow_run.info.run_name == result["name"] == "random-toroidal"
    assert mlflow_run.data.tags["status"] == "finished"
    assert store.get_experiment(mlflow_run.info.experiment_id).name == "graftlab"

    tags = mlflow_run.data.tags
    assert tags["mlflow.source.name"] == "train.py" and tags["model"] == "random" and tags["processor"]
    assert tags.get("mlflow.source.git.commit") == (result["revision"] or {}).get("commit")
    inputs = {part.dataset.name: part for part in mlflow_run.inputs.dataset_inputs}
    assert sorted(inputs) == ["text test", "text train", "text validation"]
    assert inputs["text train"].dataset.digest == result["dataset"]["sha256"][:12]
    assert json.loads(inputs["text test"].dataset.profile) == result["dataset"]["test"]
    table = store.download_artifacts(mlflow_run.info.run_id, "samples_table.json")
    assert json.loads(Path(table).read_text())["columns"] == ["prompt", "before", "after"]

    params = mlflow_run.data.params
    assert params == {key: str(value) for key, value in flatten(result["config"]).items()}
    assert params["replacement.depth"] == "2"
    assert LONG in params["samples.prompts"]

    assert result["metrics"].items() <= mlflow_run.data.metrics.items()
    points = store.get_metric_history(mlflow_run.info.run_id, "train/loss")
    assert [point.step for point in points] == [6, 7, 8, 9]

    artifacts = {file.path for file in store.list_artifacts(mlflow_run.info.run_id)}
    assert artifacts == {"config.yaml", "result.json", "samples.json", "samples_table.json", "figures"}
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

    monkeypatch.setattr(MlflowClient, "log_batch", spy)
    own = ("tracking=mlflow", "replacement=toroidal", "replacement.transfer_steps=0")
    for steps in (4, 40):  # less than ten seconds pass
        calls.clear()
        run(*own, f"trainer.max_steps={steps}")
        assert sum("metrics" in options for options in calls) <= 2


# A store that does not answer


def points_of(store, run_id):
    """What the store has of a run: (metric, step, value), sorted."""
    return sorted(
        (key, point.step, point.value)
        for key in store.get_run(run_id).data.metrics
        for point in store.get_metric_history(run_id, key)
    )


def points_in(folder):
    """What the folder of a run has, curves and scores."""
    result = json.loads((folder / "result.json").read_text())
    curves = {(key, step, value) for key, points in read_curves(folder).items() for step, value in points}
    last = sum(stage["steps"] for stage in result["stages"].values())
    return sorted(curves | {(key, last, value) for key, value in result["metrics"].items()})


@pytest.fixture
def at_step(monkeypatch):
    """Do something before the second step of training."""

    def at_step(do):
        step = CausalLMModule.training_step

        def disturbed(self, *arguments):
            if self.stage_name == "next_token" and self.global_step == 1:
                do()
            return step(self, *arguments)

        monkeypatch.setattr(CausalLMModule, "training_step", disturbed)

    return at_step


def no_store_at_all(file):
    file.write_text("this is no database " * 100)


def cut(file):
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("damage", [no_store_at_all, cut, Path.unlink, lambda file: os.truncate(file, 0)])
def test_a_store_that_breaks_in_mid_run(run, store, empty_store, at_step, tmp_path, capsys, damage):
    file = tmp_path / "outputs" / "mlflow.db"
    at_step(lambda: damage(file))
    folder = run(*TRAINED)
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "finished"
    if damage in (no_store_at_all, cut):
        told = capsys.readouterr().err
        assert re.search(r"not in the tracking store: .*(is no database|is damaged): .*move it away", told)
        assert f"python -m studies.tools.track {folder}" in told and "Traceback" not in told
        shutil.copy(empty_store, file)
        track(folder.parent.parent)
        result = json.loads((folder / "result.json").read_text())
    assert store.get_run(result["mlflow_run_id"]).info.status == "FINISHED"
    assert points_of(store, result["mlflow_run_id"]) == points_in(folder)


def test_a_locked_store(run, store, at_step, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(store_module, "LOCKED_SECONDS", 0.1)
    lock = sqlite3.connect(tmp_path / "outputs" / "mlflow.db")
    lock.execute("BEGIN EXCLUSIVE")
    folder = run(*TRAINED)
    assert "not in the tracking store: " in (told := capsys.readouterr().err) and "is locked by another" in told
    lock.rollback()
    track(folder)
    assert points_of(store, json.loads((folder / "result.json").read_text())["mlflow_run_id"]) == points_in(folder)
    track(folder.parent.parent)
    assert capsys.readouterr().out.endswith("0 sent; 1 were there, or are without tracking\n")


def test_a_server_that_does_not_answer(run, store, monkeypatch, capsys, tmp_path):
    """One takes connections and says nothing; nothing is behind the other port."""
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (silent.getsockname()[1], 9):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
            folder = run(*TRAINED, "tracking=server")
            assert json.loads((folder / "result.json").read_text())["status"] == "finished"
            assert f"python -m studies.tools.track {folder}" in capsys.readouterr().err
    track(folder, f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    assert points_of(store, json.loads((folder / "result.json").read_text())["mlflow_run_id"]) == points_in(folder)


def test_a_deleted_experiment_is_told_with_its_remedy(run, store, capsys):
    store.delete_experiment(identity := store.create_experiment("graftlab"))
    assert json.loads((run(*TRAINED) / "result.json").read_text())["status"] == "finished"
    assert f"mlflow experiments restore --experiment-id {identity}" in capsys.readouterr().err


# Killed runs


@pytest.fixture
def killed(run, monkeypatch, only_result, tmp_path):
    """The folder of a run that a SIGKILL ended amid its training, after its checkpoint of step 2."""

    def killed():
        step = CausalLMModule.training_step

        def interrupted(self, *arguments):
            if self.stage_name == "next_token" and self.global_step == 3:
                raise KeyboardInterrupt
            return step(self, *arguments)

        def gone(self, folder):
            self.worker.submit(self.copy.release).wait()
            self.worker.stop()
            folder.result["status"] = "running"
            folder.write()
            file = folder.path / "result.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), "pid": 2**22 + 1}))

        with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
            patch.setattr(CausalLMModule, "training_step", interrupted)
            patch.setattr(MLflowRun, "close", gone)
            run(*TRAINED, "trainer.checkpoint_every_n_steps=2")
        (folder,) = (tmp_path / "outputs" / "runs").iterdir()
        return folder

    return killed


def test_a_killed_and_resumed_run_is_in_the_store_as_an_undisturbed_one(killed, run, store):
    folder = killed()
    first = json.loads((folder / "tracking.json").read_text())["run_id"]
    assert store.get_run(first).info.status == "RUNNING"
    assert ("train/loss", 7, read_curves(folder)["train/loss"][1][1]) in points_of(store, first)  # sent at step 2
    assert run(*TRAINED, "resume=auto", "trainer.checkpoint_every_n_steps=2") == folder
    assert json.loads((folder / "result.json").read_text())["mlflow_run_id"] == first
    assert points_of(store, first) == points_in(folder)
    undisturbed = run(*TRAINED)
    measured = ("time/", "throughput/", "memory/")
    ours, theirs = (
        [(name, step, not name.startswith(measured) and value) for name, step, value in points_in(path)]
        for path in (folder, undisturbed)
    )
    assert ours == theirs


def test_the_next_start_mends_what_a_killed_run_left(killed, run, store):
    folder = killed()
    run(*TRAINED, "seed=1")
    result = json.loads((folder / "result.json").read_text())
    assert store.get_run(result["mlflow_run_id"]).info.status == "KILLED"
    curves = [(key, step, value) for key, points in read_curves(folder).items() for step, value in points]
    assert points_of(store, result["mlflow_run_id"]) == sorted(curves)


def test_points_that_the_folder_does_not_have_do_not_stay(run, store, tmp_path):
    folder = run(*TRAINED)
    first = json.loads((folder / "result.json").read_text())["mlflow_run_id"]
    store.log_metric(first, "train/loss", 7.0, step=6)  # as a resumed run gives a step another value
    store.set_tag(first, "note", "mine")
    track(folder)
    second = json.loads((folder / "result.json").read_text())["mlflow_run_id"]
    assert points_of(store, second) == points_in(folder)
    assert store.get_run(second).data.tags["note"] == "mine"
    assert store.get_run(first).info.lifecycle_stage == "deleted"


def test_track_names_what_it_takes(tmp_path):
    with pytest.raises(UserError, match="holds nothing to send"):
        track(tmp_path)


# Setting a store up


FRESH_STORE = """
import os, sys
from pathlib import Path
from studies.run.mlflow_store import DEFAULT_STORE, open_store
import mlflow.tracking._tracking_service.utils, mlflow.store.tracking.sqlalchemy_store

children = []
for number in range(3):
    child = os.fork()
    if child == 0:
        store = open_store(DEFAULT_STORE, "graftlab", Path(sys.argv[1]))
        print(store.client.create_run(store.experiment).info.run_id, flush=True)
        os._exit(0)
    children.append(child)
sys.exit(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))
"""


def test_processes_at_a_fresh_store_at_once(forked, tmp_path):
    """Its folder has a name in which an address would read characters as signs."""
    (script := tmp_path / "script.py").write_text(FRESH_STORE)
    folder = tmp_path / "here" / "100%25?a=b"
    folder.mkdir()
    done = forked(str(script), str(folder))
    assert done.returncode == 0, done.stderr
    assert {file.name for file in folder.iterdir()} == {"mlflow.db", "mlflow.db.lock"}
    assert list(folder.parent.iterdir()) == [folder]
    with sqlite3.connect(folder / "mlflow.db") as database:
        runs = {run for (run,) in database.execute("SELECT run_uuid FROM runs")}
        names = [name for (name,) in database.execute("SELECT name FROM experiments")]
    assert runs == set(done.stdout.split()) and len(runs) == 3
    assert sorted(names) == ["Default", "graftlab"]


def test_a_set_up_that_breaks_off_leaves_nothing(tmp_path, monkeypatch, empty_store):
    def full(engine):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="its disk is full"):
        patch.setattr("mlflow.store.db.utils._initialize_tables", full)
        open_store(DEFAULT_STORE, "graftlab", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db.lock"]
    # What an earlier version left: some of the tables, and no run.
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        database.execute("CREATE TABLE runs (run_uuid VARCHAR(32))")
    monkeypatch.setattr(store_module, "_set_up", lambda file: shutil.copy(empty_store, file))
    store = open_store(DEFAULT_STORE, "graftlab", tmp_path)
    assert store.client.create_run(store.experiment).info.status == "RUNNING"


def test_another_database_is_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        database.execute("CREATE TABLE runs (run_uuid VARCHAR(32))")
        database.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(UserError, match="tracking.uri="):
        open_store(DEFAULT_STORE, "graftlab", tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("SELECT name FROM recipes")


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2], "e": {}}


def test_the_model_is_logged_where_it_is_asked_for(tracked, store):
    folder, mlflow_run = tracked("tracking.log_model=true")
    import mlflow

    model = mlflow.pyfunc.load_model(store.download_artifacts(mlflow_run.info.run_id, "model"))
    (sample, *_) = json.loads((folder / "samples.json").read_text())
    assert model.predict([sample["prompt"]], params={"max_new_tokens": 2}) == [sample["after"]]
    assert not list(folder.glob("tmp*"))  # the export that was sent


def test_a_model_is_not_logged_unasked(tracked, store):
    _, mlflow_run = tracked()
    assert "model" not in {file.path for file in store.list_artifacts(mlflow_run.info.run_id)}


def test_the_machine_is_sampled_where_it_is_asked_for(tracked, monkeypatch, store):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    folder, mlflow_run = tracked("tracking.system_metrics=true")
    assert "system/cpu_utilization_percentage" in mlflow_run.data.metrics
    track(folder)  # what the folder does not have of these does not count
    result = json.loads((folder / "result.json").read_text())
    assert result["mlflow_run_id"] == mlflow_run.info.run_id
