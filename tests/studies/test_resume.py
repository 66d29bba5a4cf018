"""A run that was killed and resumed is the run that was not."""

import errno
import gc
import json
import os
import shutil
import signal
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import data_modules.tensor_files as tensor_files
import train
from lightning_modules.callbacks.checkpoint import Interrupted, StepCheckpoint
from lightning_modules.causal_lm import CausalLMModule
from registries.registry import UserError
from studies import study
from studies.run.curves import read_curves
from studies.run.document_scores import read_documents

STUDY = (
    "replacement=toroidal",
    "replacement.layers=all",
    "replacement.dropout=0.2",
    "replacement.transfer_steps=6",
    "trainer.max_steps=8",
    "trainer.accumulate_grad_batches=2",
    "trainer.val_check_interval=2",
    "trainer.checkpoint_every_n_steps=2",
)
# One block is soon learnt by heart: training stops before its last step, with the weights of an earlier one.
STOPPING = ("model.freeze=false", "dataset.train_size=1", "optimizer.lr=0.02", "trainer.early_stopping.patience=1")
PATIENT = ("trainer.early_stopping.patience=100",)
KILLS = (
    (
        "transfer, at its fourth step",
        "after the transfer, before its score",
        "training, between accumulated batches",
    ),
    (
        "transfer, in its validation",
        "training, in its second validation",
        "before the final score",
    ),
    (
        "transfer, before its checkpoint is renamed",
        "after the transfer, before its weights are saved",
        "training, before an optimizer step",
        "before the first step of training",
    ),
)
CASES = [*((PATIENT, kills) for kills in KILLS), (STOPPING, KILLS[1])]


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def trained(folder):
    return load_file(folder / "checkpoints" / "trained.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def killed(small_in, cache_dir, in_forks, tmp_path_factory):
    """Run a study in processes that are killed, one after the other, until the last one is not.

    Returns the folder of the run, the exit codes of the processes and what the last one printed.
    """

    @cache
    def killed(own, kills=()):
        folder = tmp_path_factory.mktemp("killed")
        study = small_in(folder, *STUDY, *own, "resume=auto", f"cache_dir={cache_dir}")
        request = {"overrides": study, "folder": str(folder)}
        ended = [in_forks({**request, "kill": kill})[0] for kill in (*kills, "never")]
        (run,) = (folder / "runs").iterdir()
        return run, [process.returncode for process in ended], ended[-1].stderr

    return killed


@pytest.mark.parametrize(("own", "kills"), CASES, ids=["steps", "validations", "files", "early stop"])
def test_killed_three_times_and_resumed_ends_with_the_same_bits(killed, own, kills):
    folder, codes, printed = killed(own, kills)
    assert codes == [-signal.SIGKILL] * len(kills) + [0], printed
    straight, codes, printed = killed(own)
    assert codes == [0], printed
    assert same(trained(folder), trained(straight))
    mine, theirs = result_of(folder), result_of(straight)
    assert mine["status"] == theirs["status"] == "finished"
    scores = [name for name in theirs["metrics"] if name.startswith(("val/", "test/", "swap/", "transfer/"))]
    assert {name: mine["metrics"][name] for name in scores} == {name: theirs["metrics"][name] for name in scores}
    assert read_curves(folder) == read_curves(straight)


def test_the_stopped_run_stopped_early(killed):
    folder, _, _ = killed(STOPPING)
    assert 4 < len(read_curves(folder)["train/loss"]) < 8
    folder, _, _ = killed(PATIENT)
    assert len(read_curves(folder)["train/loss"]) == 8


# SIGTERM and Ctrl-C


@pytest.fixture
def interrupt(monkeypatch):
    """Send this process signals before a call of a method for which a condition holds; once."""
    return partial(send_before, monkeypatch)


def send_before(patch, numbers, owner, name, condition):
    original = getattr(owner, name)

    def wrapped(self, *arguments):
        if condition(self):
            patch.setattr(owner, name, original)
            for number in numbers:
                os.kill(os.getpid(), number)
        return original(self, *arguments)

    patch.setattr(owner, name, wrapped)


def at_step(stage, step):
    return lambda module: module.stage_name == stage and module.global_step == step and module.trainer.state.fn == "fit"


@pytest.fixture
def only_run(tmp_path):
    def only_run():
        (folder,) = (tmp_path / "outputs" / "runs").iterdir()
        return folder

    return only_run


@pytest.mark.each_value
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("method", "stage", "step"),
    [
        ("training_step", "transfer", 3),
        ("training_step", "next_token", 5),
        ("validation_step", "next_token", 4),
        ("training_step", "next_token", 7),  # the last step: no other begins
        ("validation_step", "next_token", 8),
    ],
)
def test_a_signal_leaves_a_resumable_run(run, run_once, only_run, interrupt, number, method, stage, step):
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    interrupt([number], CausalLMModule, method, at_step(stage, step))
    with pytest.raises((Interrupted, KeyboardInterrupt, SystemExit)):
        run(*STUDY)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    folder = only_run()
    assert result_of(folder)["status"] == "killed"
    checkpoint = torch.load(folder / "checkpoints" / stage / "last.ckpt", weights_only=True)
    assert step - 2 <= checkpoint["global_step"] <= step + 1
    assert run(*STUDY, "resume=auto") == folder
    assert "error" not in result_of(folder)
    assert same(trained(folder), trained(run_once(*STUDY)))


def test_a_signal_while_the_model_is_scored(run, only_run, interrupt):
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    for number in (signal.SIGTERM, signal.SIGINT):
        interrupt([number], CausalLMModule, "validation_step", lambda module: module.stage_name == "next_token")
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run(*STUDY, "trainer.val_check_interval=null", "resume=auto")
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
        assert result_of(only_run())["status"] == "killed"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_not_lost_in_a_callback_of_the_garbage_collector(run, only_run, monkeypatch, number):
    load = study.load_language_model

    def load_and_collect(*arguments):
        def callback(phase, information):  # Python ignores what is raised here
            gc.callbacks.remove(callback)
            os.kill(os.getpid(), number)

        gc.callbacks.append(callback)
        gc.collect()
        return load(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Interrupted) as caught:
        patch.setattr(study, "load_language_model", load_and_collect)
        run(*STUDY)
    assert caught.value.code == 128 + number
    assert result_of(only_run())["status"] == "killed"
    assert "swap/loss" not in result_of(only_run())["metrics"]  # not only at the first step of training
    assert run(*STUDY, "resume=auto") == only_run()
    assert result_of(only_run())["status"] == "finished"


def test_a_library_that_makes_a_failure_of_a_signal(run, only_run, monkeypatch):
    def load(*arguments):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException as error:
            raise RuntimeError("cannot load") from error

    monkeypatch.setattr(study, "load_language_model", load)
    with pytest.raises(Interrupted, match="stopped by SIGTERM: continue with resume=auto"):
        run(*STUDY)
    assert result_of(only_run())["status"] == "killed"


def test_asked_twice_it_stops_at_once(run, only_run, interrupt):
    interrupt([signal.SIGINT, signal.SIGINT], CausalLMModule, "training_step", at_step("next_token", 2))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(*STUDY, "trainer.checkpoint_every_n_steps=100")
    assert not list(only_run().rglob("last.ckpt"))
    assert result_of(only_run())["status"] == "killed"


# What cannot be resumed


@pytest.fixture(scope="module")
def stopped(small_in, tmp_path_factory):
    """The output folder of a study that was stopped in its training."""

    @cache
    def stopped(*own):
        output_dir = tmp_path_factory.mktemp("stopped")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
            send_before(patch, [signal.SIGTERM], CausalLMModule, "training_step", at_step("next_token", 5))
            train.run(train.compose(small_in(output_dir, *STUDY, *own)))
        return output_dir

    return stopped


@pytest.fixture
def stop(stopped, tmp_path):
    """Leave such a study behind in the output folder of the test."""
    return lambda *own: shutil.copytree(stopped(*own), tmp_path / "outputs")


def test_a_folder_of_another_config_is_refused(run, only_run, stop):
    stop()
    with pytest.raises(UserError) as caught:
        run(*STUDY, f"resume={only_run()}", "seed=3", "replacement.depth=4", "trainer.enable_progress_bar=true")
    message = str(caught.value)
    assert "replacement.depth=2 there, 4 here" in message
    assert "seed=0 there, 3 here" in message
    assert "enable_progress_bar" not in message  # it may differ
    assert "resume=never" in message
    assert result_of(only_run())["status"] == "killed"


def test_a_folder_of_this_config_is_resumed(run, only_run, stop):
    stop()
    folder = only_run()
    assert run(*STUDY, f"resume={folder}", "trainer.checkpoint_every_n_steps=3") == folder
    assert result_of(folder)["status"] == "finished"


def test_auto_starts_anew_where_nothing_is_unfinished(run, stop):
    stop()
    other = run(*STUDY, "resume=auto", "seed=1")
    assert other != min(other.parent.iterdir(), key=lambda folder: folder.name)
    assert run(*STUDY, "resume=auto", "seed=1") != other


def test_a_folder_that_is_no_run(run, tmp_path):
    with pytest.raises(UserError, match="is not a run's folder"):
        run(f"resume={tmp_path}")


def flip(file, share=0.5):
    """Change one bit."""
    content = bytearray(file.read_bytes())
    content[int(len(content) * share)] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "another file", "flipped"])
def test_a_damaged_checkpoint(run, only_run, stop, damage):
    stop()
    file = only_run() / "checkpoints" / "next_token" / "last.ckpt"
    content = file.read_bytes()
    if damage == "another file":
        torch.save({"something": 1}, file)
    elif damage == "flipped":
        flip(file)
    else:
        file.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "garbage": b"x" * 999}[damage])
    with pytest.raises(UserError, match="last.ckpt.* is damaged.*remove it"):
        run(*STUDY, "resume=auto")
    assert result_of(only_run())["status"] == "failed"
    file.unlink()
    assert run(*STUDY, "resume=auto") == only_run()
    assert result_of(only_run())["status"] == "finished"


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone", "other parameters"])
def test_damaged_weights_of_a_stage_that_was_finished(run, only_run, stop, damage):
    stop()
    file = only_run() / "checkpoints" / "transfer" / "weights.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "flipped":
        flip(file, 0.9)
    elif damage == "gone":
        file.unlink()
    else:
        save_file({"weight": torch.zeros(2)}, file)
    with pytest.raises(UserError, match=f"weights.safetensors.*remove {only_run()} and run the study again"):
        run(*STUDY, "resume=auto")


DAMAGED = ("", "[]", '{"baseline/": [[1, 2', '{"baseline/": [[1.5, 2]], "sha256": "0"}', "\udcff")


@pytest.mark.parametrize("content", DAMAGED, ids=["empty", "a list", "cut", "changed", "no UTF-8"])
def test_damaged_documents_samples_and_curves_are_written_anew(run, run_once, only_run, stop, content):
    stop("samples.max_new_tokens=2")
    for name in ("documents.json", "samples.json", "curves.jsonl"):
        (only_run() / name).write_text(content + "\n", errors="surrogateescape")
    folder, straight = (
        run(*STUDY, "samples.max_new_tokens=2", "resume=auto"),
        run_once(*STUDY, "samples.max_new_tokens=2"),
    )
    assert folder == only_run()
    assert read_documents(folder, "baseline/") == read_documents(straight, "baseline/")
    assert result_of(folder)["metrics"]["val/ppl_ratio_low"] == result_of(straight)["metrics"]["val/ppl_ratio_low"]
    assert (folder / "samples.json").read_text() == (straight / "samples.json").read_text()


def test_documents_of_which_a_digit_was_changed_compare_with_nothing(run_once, tmp_path):
    folder = shutil.copytree(run_once(), tmp_path / "run")
    file = folder / "documents.json"
    file.write_text(file.read_text().replace("1", "2", 1))
    with pytest.raises(UserError, match=f"documents.json is damaged .*checksum.*remove {folder}"):
        read_documents(folder, "val/")


# A full disk


@pytest.mark.parametrize("where", ["checkpoint", "weights"])
def test_a_full_disk_loses_nothing(run, run_once, only_run, monkeypatch, where):
    full = OSError(errno.ENOSPC, "No space left on device")
    if where == "checkpoint":
        save, owner, name = Trainer.save_checkpoint, Trainer, "save_checkpoint"

        def broken(self, path, *arguments, **options):
            if self.global_step < 4:
                return save(self, path, *arguments, **options)
            path.write_bytes(b"half")
            raise full
    else:
        owner, name = tensor_files, "save_file"

        def broken(tensors, path, *arguments, **options):
            Path(path).write_bytes(b"half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, broken)
        with pytest.raises(UserError, match="the disk of .* is full: free some space, then continue with resume=auto"):
            run(*STUDY, "replacement.transfer_steps=0")
    folder = only_run()
    assert result_of(folder)["status"] == "failed"
    assert "is full" in result_of(folder)["error"]
    assert [file for file in folder.rglob("*") if "partial" in file.name] == []
    checkpoint = torch.load(folder / "checkpoints" / "next_token" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == (2 if where == "checkpoint" else 6)
    assert run(*STUDY, "replacement.transfer_steps=0", "resume=auto") == folder
    assert same(trained(folder), trained(run_once(*STUDY, "replacement.transfer_steps=0")))


def test_checkpoints_are_small_and_plain(run, monkeypatch):
    """What trains, not the model; loadable without executing anything."""
    files = []
    save = StepCheckpoint._save

    def spy(self, trainer):
        save(self, trainer)
        files.append(torch.load(self.path, weights_only=True))

    monkeypatch.setattr(StepCheckpoint, "_save", spy)
    folder = run(*STUDY, "replacement.transfer_steps=0")
    names = {name.removeprefix("model.") for name in files[-1]["state_dict"]}
    assert names == trained(folder).keys()
    assert not (folder / "checkpoints" / "next_token" / "last.ckpt").exists()


# Runs that need not be repeated


def test_skip_finished(run, small, capsys):
    folder = run()
    before = (folder / "result.json").read_text()
    result = train.run(train.compose(small("skip_finished=true")))
    assert result == {**json.loads(before), "status": "skipped"}
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)
    assert (folder / "result.json").read_text() == before
    assert run("skip_finished=true", "seed=1") != folder
