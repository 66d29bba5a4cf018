"""The jobs of a sweep: its folder, their failures, and which of them come last."""

import csv
import json
import re
import signal

import pytest
from mlflow import MlflowClient

import train
from lightning_modules.stopping import Interrupted
from studies.config.launch import launch
from studies.run.jobs import claim, failures, quoted, sweep_runs
from studies.run.results import read_result


@pytest.fixture
def sweep(small, tmp_path, monkeypatch):
    """Start a sweep over seeds, of which some do what they should not. Returns its exit status and its folder."""

    def sweep(misbehave, *more, seeds="0,1,2"):
        run, before = train.run, {*(tmp_path / "outputs" / "sweeps").glob("*")}

        def disturbed(cfg, overrides):
            if cfg["seed"] in misbehave:
                misbehave[cfg["seed"]]()
            return run(cfg, overrides)

        status = 0
        with monkeypatch.context() as patch:
            patch.setattr(train, "run", disturbed)
            try:
                launch(train.job, "config", ["-m", *small("trainer.max_steps=0", *more), f"seed={seeds}"])
            except SystemExit as stopped:
                status = stopped.code
        (folder,) = {*(tmp_path / "outputs" / "sweeps").glob("*")} - before
        return status, folder

    return sweep


def wrong():
    raise RuntimeError("out of order")


def seeds_of(folder):
    return [read_result(path)["config"]["seed"] for path in sweep_runs(folder)]


def test_failed_jobs_are_listed_and_decide_the_status(sweep, capsys):
    status, folder = sweep({1: wrong, 2: lambda: exit(3)})
    assert status == 1
    printed = capsys.readouterr().out
    assert re.search(r"2 jobs of this sweep failed:\n  job 1 \(.*seed=1\): RuntimeError: out of order\n", printed)
    assert "SystemExit: 3" in printed and printed.rstrip().endswith(str(folder))
    summary = json.loads((folder / "summary.json").read_text())
    assert [(failure["job"], failure["cause"]) for failure in summary["failed"]] == [
        (1, "RuntimeError: out of order"),
        (2, "SystemExit: 3"),
    ]
    assert "in wrong\n" in (folder / "failures" / "00001.txt").read_text()
    assert seeds_of(folder) == [0]


def test_a_sweep_of_which_all_jobs_fail_has_a_summary(sweep):
    status, folder = sweep(dict.fromkeys(range(3), wrong))
    assert status == 1
    assert len(json.loads((folder / "summary.json").read_text())["failed"]) == 3


def test_a_sweep_that_stops_at_a_failure_tells_what_it_has(sweep):
    status, folder = sweep({1: wrong}, "on_failure=stop")
    assert status == 1
    assert [failure["job"] for failure in failures(folder)] == [1]
    assert (folder / "summary.json").is_file() and seeds_of(folder) == [0]


def test_a_sweep_stops_after_so_many_failures(sweep):
    status, folder = sweep(dict.fromkeys(range(3), wrong), "max_failures=2", seeds="0,1,2,3")
    assert status == 1 and [failure["job"] for failure in failures(folder)] == [0, 1]
    assert (folder / "stopped").read_text() == "RuntimeError: out of order" and seeds_of(folder) == []


def test_a_job_after_the_stop_of_another_process_does_nothing(sweep, tmp_path):
    def stop():
        (folder,) = (tmp_path / "outputs" / "sweeps").glob("*")
        (folder / "stopped").write_text("by another process")

    _, folder = sweep({0: stop})
    assert seeds_of(folder) == [0]


def test_the_summary_grows_while_jobs_end(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr("studies.report.sweep_summary.GROW_SECONDS", 0)
    counts = []

    def count():
        (file,) = (tmp_path / "outputs" / "sweeps").glob("*/summary.json")
        counts.append(json.loads(file.read_text())["jobs"])

    sweep({1: count, 2: count})
    assert counts == [{"planned": 3, "finished": 1}, {"planned": 3, "finished": 2}]


def test_a_sweep_tells_which_job_it_is_at(sweep, capsys):
    _, folder = sweep({1: wrong})
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("job ")]
    assert told[0] == "job 1 of 3: seed=0"
    assert re.fullmatch(r"job 3 of 3, about \d:\d\d:\d\d left: seed=2", told[2])
    assert [path.name.rpartition("_")[2] for path in sweep_runs(folder)] == ["seed=0", "seed=2"]  # what varies


def test_a_job_without_memory_is_done_with_half_the_batch(sweep, monkeypatch):
    sizes = []

    def lack():
        if not sizes:
            sizes.append("large")
            raise MemoryError("9 GB")

    status, folder = sweep({0: lack}, "on_oom=halve", "dataset.batch_size=2", "trainer.max_steps=1", seeds="0,1")
    assert status == 0 and not failures(folder)
    configs = [read_result(path)["config"] for path in sweep_runs(folder)]
    batches = [(config["dataset"]["batch_size"], config["trainer"]["accumulate_grad_batches"]) for config in configs]
    assert batches == [(1, 2), (2, 1)]
    assert read_result(sweep_runs(folder)[0])["overrides"][-2:] == [
        "dataset.batch_size=1",
        "trainer.accumulate_grad_batches=2",
    ]
    (note, *_) = json.loads((folder / "summary.json").read_text())["notes"]
    assert note == "job 0: out of memory with batches of 2: again with batches of 1, 2 for a step"


def test_a_job_that_never_fits_fails(sweep):
    def lack():
        raise MemoryError("9 GB")

    status, folder = sweep({0: lack}, "on_oom=halve", "dataset.batch_size=2", seeds="0")
    assert status == 1 and failures(folder)[0]["cause"] == "MemoryError: 9 GB"


def test_the_store_has_the_sweep_from_its_first_job_on(sweep, tmp_path):
    seen = []

    def look():
        store = MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
        runs = {run.info.run_name: run for run in store.search_runs(["1"])}
        parent = runs["sweep seed"]
        seen.append(
            (parent.info.status, runs["random-none seed=0"].data.tags["mlflow.parentRunId"], parent.info.run_id)
        )

    status, folder = sweep({1: look}, "tracking=mlflow", seeds="0,1,2")
    (told, parent_of_first, parent) = seen[0]
    assert status == 0 and told == "RUNNING" and parent_of_first == parent
    run = MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db").get_run(parent)
    best = min(read_result(path)["metrics"]["val/loss"] for path in sweep_runs(folder))
    assert run.info.status == "FINISHED" and run.data.metrics["jobs/finished"] == run.data.metrics["jobs/planned"] == 3
    assert run.data.metrics["val/loss"] >= best and "| seeds | loss |" in run.data.tags["mlflow.note.content"]


def test_a_sweep_without_failures_ends_well(sweep):
    assert sweep({}, seeds="0,1")[0] == 0


def test_a_job_that_ends_its_process_comes_last_at_the_next_start(sweep, tmp_path):
    sweeps, left = tmp_path / "outputs" / "sweeps", []

    def note():
        (file,) = sweeps.glob("*/at_work.00000")
        left.append(json.loads(file.read_text()))

    sweep({0: note}, seeds="0")
    (sweeps / "earlier").mkdir()
    (sweeps / "earlier" / "at_work.00000").write_text(json.dumps({**left[0], "pid": 2**22 + 1}))

    def rows():
        (file,) = set(sweeps.glob("*/summary.csv")) - before
        return [row["seed"] for row in csv.DictReader(file.open())]

    before, summaries = set(sweeps.glob("*/summary.csv")), []
    status, folder = sweep({0: lambda: summaries.append(rows())})
    assert status == 0
    assert summaries == [["1", "2"]]  # written before that job runs: it may end the process once more
    assert seeds_of(folder) == [0, 1, 2]
    assert not list(sweeps.glob("*/at_work*"))


def test_a_signal_ends_the_sweep_and_leaves_no_job_behind(sweep, tmp_path):
    def stopped():
        raise Interrupted(signal.SIGTERM)

    status, folder = sweep({1: stopped})
    assert status == 128 + signal.SIGTERM
    assert seeds_of(folder) == [0] and not failures(folder) and not list(folder.glob("at_work*"))


def test_every_sweep_has_a_folder_of_its_own(tmp_path):
    taken = claim(tmp_path / "sweep")
    assert claim(tmp_path / "sweep") == tmp_path / "sweep_1" != taken
    (tmp_path / "mine").mkdir()
    assert claim(tmp_path / "mine") == tmp_path / "mine"


def test_a_sweep_whose_folder_is_taken_has_another_with_its_own_jobs(sweep, tmp_path):
    named = tmp_path / "outputs" / "sweeps" / "it's 100%, a=b"
    (one, first), (other, second) = (sweep({}, f"hydra.sweep.dir={quoted(str(named))}", seeds=str(n)) for n in (1, 2))
    assert (one, other) == (0, 0)
    assert (first, second) == (named, named.with_name(f"{named.name}_1"))
    assert (seeds_of(first), seeds_of(second)) == ([1], [2])
