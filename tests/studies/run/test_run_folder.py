"""The folder of a run, as others find it."""

import errno
import json
import os
import subprocess
import sys
import time

import pytest

from registries import partial_files
from registries.registry import UserError
from studies.run import heartbeat as heartbeat_module
from studies.run import results
from studies.run.curve_file import CurveFile
from studies.run.curves import read_curves
from studies.run.files import write_text
from studies.run.heartbeat import Heartbeat
from studies.run.results import find_run, read_result
from studies.run.run_folder import RunFolder, clear_leftovers


@pytest.fixture
def ended_process():
    """The number of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def create(output_dir, **result):
    return RunFolder.create(output_dir, "name", fingerprint="f", **result)


def change(folder, **values):
    file = folder.path / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_new_folder_says_that_it_runs(tmp_path):
    folder = create(tmp_path)
    result = read_result(folder.path)
    assert result["status"] == "running"
    assert result["pid"] == os.getpid()
    assert time.time() - result["heartbeat"] < 10


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path):
    assert len({create(tmp_path).path for _ in range(4)}) == 4


def test_a_run_whose_process_is_gone_is_shown_as_killed(tmp_path, ended_process):
    folder = create(tmp_path)
    change(folder, pid=ended_process)
    assert read_result(folder.path)["status"] == "killed"


def test_a_run_whose_number_went_to_another_process_is_shown_as_killed(tmp_path):
    folder = create(tmp_path)
    change(folder, heartbeat=1000.0)  # before this process was started
    assert read_result(folder.path)["status"] == "killed"


def test_a_run_whose_process_is_a_zombie_is_shown_as_killed(tmp_path):
    folder = create(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and not waited for
    change(folder, pid=process.pid, heartbeat=time.time() + 1)
    assert read_result(folder.path)["status"] == "killed"
    process.wait()


@pytest.mark.parametrize("status", ["finished", "nan", "oom", "failed"])
def test_a_run_that_has_ended_keeps_its_status(tmp_path, ended_process, status):
    folder = create(tmp_path)
    change(folder, pid=ended_process, status=status)
    assert read_result(folder.path)["status"] == status


def test_no_result_and_a_damaged_one(tmp_path):
    with pytest.raises(UserError, match="is not a run's folder"):
        read_result(tmp_path)
    (tmp_path / "result.json").write_text('{"status": "runn')
    with pytest.raises(UserError, match="result.json is damaged"):
        read_result(tmp_path)


def test_find_run_gives_the_newest_that_nobody_works_on(tmp_path, ended_process):
    older, newer, at_work, other = (create(tmp_path) for _ in range(4))
    change(older, status="nan")
    change(newer, status="failed")
    change(at_work, pid=os.getppid())
    change(other, status="killed", fingerprint="g")
    assert find_run(tmp_path, "f", results.UNFINISHED) == newer.path
    assert find_run(tmp_path, "f", ("finished",)) is None
    change(at_work, pid=ended_process)
    assert find_run(tmp_path, "f", results.UNFINISHED) == at_work.path


@pytest.mark.parametrize("owner", ["pathlib.Path.write_text", "os.replace"])
def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch, owner):
    write_text(tmp_path / "file", "before")

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="the disk of .* is full"):
        patch.setattr(owner, full)
        write_text(tmp_path / "file", "after")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file", "before")]


def test_the_heart_beats_and_samples_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat_module, "SAMPLE_SECONDS", 0.01)
    monkeypatch.setattr(heartbeat_module, "HEARTBEAT_SECONDS", 0.02)
    folder = create(tmp_path)
    os.utime(folder.path / "result.json", (0, 0))
    with Heartbeat(folder) as heartbeat:
        before = heartbeat.peak_bytes
        ballast = bytearray(os.urandom(1 << 20) * 64)
        deadline = time.monotonic() + 10
        while (folder.path / "result.json").stat().st_mtime < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        del ballast
    assert (folder.path / "result.json").stat().st_mtime > 1
    assert heartbeat.peak_bytes - before > 32 * 2**20


def test_curves_of_a_run_that_was_cut_short_and_resumed(tmp_path):
    curves = CurveFile(tmp_path)
    for step in range(3):
        curves.log_metrics({"loss": float(step), "epoch": 0}, step)
    with curves.file.open("a") as stream:
        stream.write('{"step": 3, "lo\n')
    curves.log_metrics({"loss": 20.0}, 2)
    assert read_curves(tmp_path) == {"loss": [(0, 0.0), (1, 1.0), (2, 20.0)]}
    assert read_curves(tmp_path / "none") == {}


def test_an_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to .*output_dir"):
        RunFolder.create(tmp_path / "file", "name")


GOOD = {"status": "finished", "metrics": {}, "baseline": {}, "pid": 1, "heartbeat": 1.0, "fingerprint": "f"}
WRONG = (
    {"status": "done"},
    {"status": []},
    {"metrics": {"a": "b"}},
    {"metrics": {"a": 1}},
    {"config": []},
    {"pid": "1"},
)
DAMAGED = [
    "",
    "[]",
    "5",
    "null",
    '{"status": "fini',
    "[" * 100_000,
    *(json.dumps({key: value for key, value in GOOD.items() if key != name}) for name in ("status", "metrics")),
    json.dumps({"status": "running", "metrics": {}}),
    *(json.dumps({**GOOD, **wrong}) for wrong in WRONG),
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_result_blocks_no_other_run(tmp_path, content, caplog):
    older, damaged = create(tmp_path), create(tmp_path)
    change(older, status="killed")
    (damaged.path / "result.json").write_text(content)
    results._warn.cache_clear()
    assert find_run(tmp_path, "f", results.UNFINISHED) == older.path
    assert [path for path, _ in results.runs(tmp_path)] == [older.path]
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"{damaged.path / 'result.json'} is damaged: " in message
    with pytest.raises(UserError, match="result.json is damaged: "):
        read_result(damaged.path)


def test_a_finished_run_without_metrics_is_passed_over(tmp_path):
    change(create(tmp_path), status="finished")
    assert find_run(tmp_path, "f", ("finished",)) is None


@pytest.mark.parametrize(("age", "status"), [(10, "running"), (1000, "killed")])
def test_elsewhere_a_run_lives_as_long_as_its_heart_beats(tmp_path, ended_process, age, status, caplog):
    """Another machine's process numbers, or another container's, say nothing here."""
    folder = create(tmp_path)
    for pid in (ended_process, os.getpid()):
        change(folder, pid=pid, machine="another")
        os.utime(folder.path / "result.json", (time.time() - age, time.time() - age))
        assert read_result(folder.path)["status"] == status
        assert results.at_work(read_result(folder.path)) == (status == "running")
        assert find_run(tmp_path, "f", results.UNFINISHED) == (folder.path if status == "killed" else None)


def test_what_killed_processes_left_is_removed(tmp_path, ended_process):
    runs, folder = tmp_path / "runs", create(tmp_path)
    (runs / "nothing" / "figures").mkdir(parents=True)
    (runs / "half" / "figures").mkdir(parents=True)
    (runs / "a user's").mkdir()
    (runs / "a user's" / "notes").write_text("")
    names = {pid: f".result.json.{pid}-1-{partial_files.machine()}.partial" for pid in (ended_process, os.getppid())}
    for name in (*names.values(), ".result.json.1-1-elsewhere.partial", "last.partial"):
        (folder.path / name).write_text("{")
    (runs / "half" / names[ended_process]).write_text("{")
    os.utime(folder.path / "last.partial", (1000, 1000))  # of a version that named no process
    clear_leftovers(tmp_path)
    assert sorted(path.name for path in runs.iterdir()) == sorted(["a user's", folder.path.name])
    left = {path.name for path in folder.path.rglob("*.partial")}
    assert left == {names[os.getppid()], ".result.json.1-1-elsewhere.partial"}
