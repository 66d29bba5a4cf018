"""Status and sameness of runs."""

import json
import multiprocessing
import os
import time
from dataclasses import replace

import pytest
import torch

import train
from lightning_modules.causal_lm import CausalLMModule, NonFiniteLoss
from lightning_modules.config import read_config
from registries.registry import UserError
from studies.run import recording
from studies.run.fingerprint import fingerprint
from studies.run.recording import open_run, status_of
from studies.run.run_folder import RunFolder


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NonFiniteLoss("nan"), "nan"),
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (MemoryError(), "oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), "oom"),
        (KeyboardInterrupt(), "killed"),
        (SystemExit(143), "killed"),
        (UserError("wrong"), "failed"),
        (RuntimeError("something else"), "failed"),
    ],
)
def test_status_of(error, status):
    assert status_of(error) == status


def test_running_out_of_memory_is_recorded(run, monkeypatch, tmp_path):
    def exhausted(*arguments):
        return torch.empty(1 << 60)

    monkeypatch.setattr(CausalLMModule, "training_step", exhausted)
    with pytest.raises(RuntimeError):
        run("replacement=toroidal")
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    assert RunFolder.open(folder).result["status"] == "oom"


@pytest.fixture
def mark(small):
    def mark(*overrides, data="sha"):
        return fingerprint(read_config(train.compose(small("replacement=toroidal", *overrides))), data)

    return mark


@pytest.mark.parametrize(
    "override",
    [
        "output_dir=elsewhere",
        "cache_dir=elsewhere",
        "tracking=mlflow",
        "resume=auto",
        "skip_finished=true",
        "on_failure=stop",
        "trainer.accelerator=auto",
        "trainer.enable_progress_bar=true",
        "trainer.checkpoint_every_n_steps=7",
        "dataset.num_workers=2",
    ],
)
def test_the_fingerprint_is_the_same_wherever_and_however_it_runs(mark, override):
    assert mark(override) == mark()


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "trainer.max_steps=5",
        "trainer.precision=bf16-mixed",
        "replacement.depth=4",
        "optimizer.lr=0.1",
        "dataset.block_size=16",
        "model.num_layers=3",
    ],
)
def test_the_fingerprint_tells_what_is_computed_apart(mark, override):
    assert mark(override) != mark()


def test_the_fingerprint_tells_data_apart(mark):
    assert mark(data="other") != mark()


def test_a_copy_of_the_data_elsewhere_is_the_same_run(run, small, text_path, tmp_path):
    folder = run()
    copy = tmp_path / text_path.name
    copy.write_text(text_path.read_text())
    result = train.run(train.compose(small(f"dataset.path={copy}", "skip_finished=true")))
    assert result["status"] == "skipped"
    assert result == {**RunFolder.open(folder).result, "status": "skipped"}


def test_a_run_that_is_at_work_is_not_resumed(small, tmp_path):
    cfg = read_config(train.compose(small()))
    folder = open_run(cfg, {"sha256": "sha"})
    file = folder.path / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pid": os.getppid()}))
    cfg = replace(cfg, resume=str(folder.path))
    with pytest.raises(UserError, match="is still at work"):
        open_run(cfg, {"sha256": "sha"})
    cfg = replace(cfg, resume="auto")
    assert open_run(cfg, {"sha256": "sha"}).path != folder.path


def choose(cfg, chosen, meet):
    """In a process of its own: choose a run at the same moment as others, and stay at work until all have."""
    meet.wait()
    chosen.put(str(open_run(cfg, {"sha256": "sha"}).path))
    meet.wait()


def test_two_processes_at_the_same_moment_do_not_take_the_same_run(small, monkeypatch):
    cfg = read_config(train.compose(small("resume=auto")))
    folder = open_run(cfg, {"sha256": "sha"})
    folder.result["status"] = "killed"
    folder.write()
    find = recording.find_run

    def slowly(*arguments):
        path = find(*arguments)
        time.sleep(0.2)
        return path

    monkeypatch.setattr(recording, "find_run", slowly)
    fork = multiprocessing.get_context("fork")
    meet, chosen = fork.Barrier(3, timeout=60), fork.SimpleQueue()
    processes = [fork.Process(target=choose, args=(cfg, chosen, meet)) for _ in range(3)]
    for process in processes:
        process.start()
    paths = {chosen.get() for _ in processes}
    for process in processes:
        process.join()
    assert len(paths) == 3


def test_what_a_result_lacks_is_filled_in(small):
    cfg = read_config(train.compose(small("resume=auto")))
    folder = open_run(cfg, {"sha256": "sha"})
    for key in ("config", "dataset", "versions", "mlflow_run_id"):
        del folder.result[key]
    folder.result["status"] = "failed"
    folder.write()
    assert open_run(cfg, {"sha256": "sha"}).path == folder.path
    assert json.loads((folder.path / "result.json").read_text())["config"] == cfg.plain


def test_an_output_folder_that_cannot_be_written(small, tmp_path):
    (tmp_path / "file").write_text("")
    cfg = read_config(train.compose(small(f"output_dir={tmp_path / 'file' / 'outputs'}")))
    with pytest.raises(UserError, match="cannot write to .*output_dir"):
        open_run(cfg, {"sha256": "sha"})
