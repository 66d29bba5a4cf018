"""Jobs whose processes end without a word."""

import json

import pytest

from studies import sweep
from studies.run.jobs import Job, ended_jobs, failures
from studies.run.jobs_at_work import BrokenOff, count_lost, is_at_work, job_at_work, times_lost

NOBODY = 2**22 + 1  # no process has this number


@pytest.fixture
def job(tmp_path):
    folder = tmp_path / "sweeps" / "now"
    folder.mkdir(parents=True)
    return Job(folder, 3, ["seed=1"])


def lose(job, **other):
    """Leave what a job leaves whose process is gone."""
    with job_at_work(job, "mark"):
        file = job.sweep / f"at_work.{job.number:05d}"
        content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "pid": NOBODY, **other}))


def test_a_job_has_a_second_chance(job):
    lose(job)
    assert count_lost(job.sweep) == 1 and times_lost(job) == 1 and not failures(job.sweep)
    assert count_lost(job.sweep) == 0  # it is counted once
    lose(job)
    assert count_lost(job.sweep) == 1
    (failure,) = failures(job.sweep)
    assert failure["job"] == 3 and failure["overrides"] == "seed=1" and "2 times without a word" in failure["cause"]
    assert ended_jobs(job.sweep) == 1 and job.loss() == float("inf")


def test_of_a_job_on_another_machine_the_sign_of_life_decides(job, monkeypatch):
    lose(job, machine="another")
    assert is_at_work(job) and count_lost(job.sweep) == 0 and times_lost(job) == 0
    monkeypatch.setattr("studies.run.jobs_at_work.SILENT_SECONDS", -1)  # it has no run yet, and was silent for long
    assert not is_at_work(job) and count_lost(job.sweep) == 1
    lose(job, machine="another")
    folder = job.sweep.parent / "run"
    folder.mkdir()
    job.note_folder(folder)
    running = {"status": "running", "metrics": {}, "pid": 1, "heartbeat": 0.0, "machine": "another"}
    (folder / "result.json").write_text(json.dumps(running))
    assert is_at_work(job)
    monkeypatch.setattr("studies.run.results.SILENT_SECONDS", -1)
    assert not is_at_work(job)


def test_a_job_that_is_at_work_is_not_lost(job):
    with job_at_work(job, "mark"):
        assert count_lost(job.sweep) == 0


def test_two_suspects_are_never_at_work_together(job):
    other = Job(job.sweep, 4, [])
    for suspect in (job, other):
        lose(suspect)
    assert count_lost(job.sweep) == 2
    with job_at_work(job, "mark"):
        from filelock import FileLock, Timeout

        with pytest.raises(Timeout), FileLock(job.sweep / ".suspects.lock", timeout=0):
            pass
    with job_at_work(other, "mark"):  # it is free again
        pass


def test_a_suspect_does_not_begin_where_another_was_just_lost(job):
    """A launcher ends all its processes a moment after one of them is gone, and would make this one look guilty."""
    other = Job(job.sweep, 4, [])
    lose(other)
    count_lost(job.sweep)
    lose(job)
    with pytest.raises(BrokenOff), job_at_work(other, "mark"):
        pass
    assert not (job.sweep / "at_work.00004").exists()


def test_a_sweep_goes_on_only_where_a_process_was_lost(job, monkeypatch):
    monkeypatch.setattr(sweep, "begun", [job.sweep])
    assert sweep.sweep_to_go_on_with() is None
    lose(job)
    assert sweep.sweep_to_go_on_with() == job.sweep
    monkeypatch.setattr(sweep, "begun", [])
    lose(job)
    assert sweep.sweep_to_go_on_with() is None
