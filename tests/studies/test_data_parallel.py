"""Two processes against one: the same study, with the blocks of every step shared."""

import json
import os
import re
import sys

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

import train
from lightning_modules.config import read_config
from registries import UserError
from studies.config.command_line import check_command_line
from studies.config.launch import exit_with, launch
from studies.run.fingerprint import fingerprint

# Transfer, then next-token training in three passes of one block (two of them in one process), then an adapter.
STUDY = (
    *("replacement=toroidal", "replacement.transfer_steps=3", "replacement.transfer_batch_size=2"),
    *("adapter=linear", "model@source=tiny_phi", "adapter.epochs=1", "adapter.batch_size=3"),
    *("trainer.accumulate_grad_batches=3", "dataset.train_size=6", "dataset.block_size=64"),
    *("samples.prompts=[One]", "samples.max_new_tokens=2"),
)
SPEED = ("throughput/", "time/", "memory/")


@pytest.fixture(scope="module")
def alone(small_in, cache_dir, tmp_path_factory):
    """The folder of the study in one process."""
    output_dir = tmp_path_factory.mktemp("alone")
    train.run(train.compose(small_in(output_dir, *STUDY, f"cache_dir={cache_dir}")))
    (folder,) = (output_dir / "runs").iterdir()
    return folder


@pytest.mark.parametrize(
    "started",
    ["two_forks", pytest.param("forked", marks=pytest.mark.full_product, id="processes that torchrun starts")],
)
def test_two_processes_learn_and_score_what_one_does(started, alone, small, request, tmp_path, cache_dir):
    start = request.getfixturevalue(started)
    done = start("train.py", *small(*STUDY, "trainer=ddp", "trainer.accelerator=cpu", f"cache_dir={cache_dir}"))
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()  # the second process keeps no records
    ours, theirs = (json.loads((each / "result.json").read_text()) for each in (alone, folder))
    assert theirs["status"] == "finished"
    assert ours["fingerprint"] == theirs["fingerprint"]  # and so either can go on with what the other began
    metrics = [
        {name: value for name, value in each["metrics"].items() if not name.startswith(SPEED)}
        for each in (ours, theirs)
    ]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4, abs=1e-5)
    for name in ("trained", "bridges"):
        weights = [load_file(each / "checkpoints" / f"{name}.safetensors") for each in (alone, folder)]
        assert_close(*weights, rtol=1e-4, atol=1e-5)
    curves = [[json.loads(line) for line in (each / "curves.jsonl").open()] for each in (alone, folder)]
    assert curves[0] == [pytest.approx(point, rel=1e-3, abs=1e-4) for point in curves[1]]
    assert (alone / "samples.json").read_text() == (folder / "samples.json").read_text()
    assert done.stdout.count(" over that of") == 1  # it prints nothing either


def test_torchrun_starts_as_many_processes_as_devices(small, monkeypatch):
    handed = []

    def replaced(program, arguments):
        handed.extend([program, *arguments])
        raise SystemExit

    monkeypatch.setattr(os, "execv", replaced)
    monkeypatch.setattr(sys, "argv", [train.__file__])
    lines = small("replacement=toroidal", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=3")
    lines += ["dataset.batch_size=3", "replacement.transfer_batch_size=3"]
    with pytest.raises(SystemExit):
        launch(train.job, "config", lines)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    assert handed == [sys.executable, sys.executable, *torchrun, train.__file__, *lines]


def test_an_error_is_told_by_the_first_process_alone(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        exit_with(UserError("wrong"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("line", ["dataset.batch_size=1", "replacement.transfer_batch_size=1", "adapter.batch_size=1"])
def test_a_step_has_a_block_for_every_device(small, line):
    train.compose(small(*STUDY, "trainer=ddp"))
    wrong = f"trainer.devices=2: each takes one block of a step at least, but {line}; raise it"
    with pytest.raises(UserError, match=re.escape(wrong)):
        train.compose(small(*STUDY, "trainer=ddp", "trainer.accumulate_grad_batches=1", line))


def test_the_block_of_a_stage_of_its_own(small):
    stage = ["recovery=[next_token]", "recovery.next_token.batch_size=2"]
    train.compose(small("replacement=toroidal", "trainer=ddp", *stage))
    with pytest.raises(UserError, match=r"but recovery\.next_token\.batch_size=2; raise it"):
        train.compose(small("replacement=toroidal", "trainer=ddp", "trainer.devices=3", *stage))


def test_the_jobs_of_a_sweep_share_their_processes(small):
    lines = small(*STUDY, "trainer=ddp", "seed=0,1")
    assert check_command_line(lines, True, "config").devices == 2
    with pytest.raises(UserError, match=r"trainer\.devices=\[1, 2\]: the jobs of a sweep share their processes"):
        check_command_line([*lines, "trainer.devices=1,2"], True, "config")


def test_scoring_takes_one_device(small):
    with pytest.raises(UserError, match="trainer.devices=2: scoring computes on one"):
        check_command_line(["model=random", "dataset=pydoc", "trainer=ddp"], False, "score")


def test_devices_do_not_change_what_a_run_is(small):
    configs = [read_config(train.compose(small(*STUDY, line))) for line in ("trainer=cpu", "trainer=ddp")]
    assert len({fingerprint(cfg, "data") for cfg in configs}) == 1
