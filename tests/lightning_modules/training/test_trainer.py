import os
import signal
from dataclasses import replace

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader

from data_modules.blocks import StepSampler
from lightning_modules.callbacks.checkpoint import Interrupted
from lightning_modules.callbacks.early_stopping import BestWeights
from lightning_modules.callbacks.throughput import WARM_UP_BATCHES, Throughput
from lightning_modules.config import EarlyStoppingSettings
from lightning_modules.surgery.trained_parameters import attention_parameters
from lightning_modules.training.trainer import evaluate, fit
from registries import UserError

STEPS = 7


def weights(module):
    return {name: parameter.detach().clone() for name, parameter in module.model.named_parameters()}


def same(one, other):
    return all(one[name].equal(other[name]) for name in one)


@pytest.fixture
def train(trainer_options, loader, blocks, make_stage, tmp_path):
    def train(module, folder="stage", start=0, callbacks=None, lr=0.01, name="next_token", logger=False, **options):
        stage = make_stage(module, name, pass_size=1, steps=STEPS, batch_size=2, lr=lr)
        module.begin(name, stage)
        rows = loader(blocks[:8], 2, stage.steps).dataset
        batches = DataLoader(rows, batch_sampler=StepSampler(stage.steps, start, 2))
        options = replace(trainer_options, **options)
        return fit(module, batches, loader(blocks[8:]), options, tmp_path / folder, logger, callbacks or ())

    return train


class SignalAt(Callback):
    """Sends a signal to the process at the end of a step."""

    def __init__(self, step, number=signal.SIGTERM):
        self.step, self.number = step, number

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


DEFAULT_HANDLERS = (signal.SIG_DFL, signal.default_int_handler)


def handlers():
    """Who is asked to stop; after training, not a trainer that has gone, which would ignore it."""
    return signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)


# Checkpoints


def test_a_checkpoint_holds_what_trained_in_plain_types(make_module, train, tmp_path):
    module = make_module("toroidal")
    train(
        module,
        checkpoint_every_n_steps=3,
        early_stopping=EarlyStoppingSettings(patience=2, min_delta=0.0),
        val_check_interval=2,
    )
    checkpoint = torch.load(tmp_path / "stage" / "last.ckpt", weights_only=True)
    expected = {f"model.{name}" for name in attention_parameters(module.model, [0, 1])}
    assert set(checkpoint["state_dict"]) == expected
    assert checkpoint["stage"] == "next_token"
    assert checkpoint["global_step"] == 6
    assert len(checkpoint["optimizer_states"][0]["state"]) == len(expected)
    assert checkpoint["lr_schedulers"]
    assert [file.name for file in (tmp_path / "stage").iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(number, make_module, train, tmp_path):
    options = {"options": {"dropout": 0.2, "lambda_distance": 1.0}, "gradient_clip_val": 0.5}
    straight = make_module("toroidal", **options)
    train(straight, "straight", val_check_interval=2)
    assert handlers() == DEFAULT_HANDLERS
    with pytest.raises(Interrupted, match=f"stopped by {number.name} at step 4"):
        train(make_module("toroidal", **options), callbacks=[SignalAt(4, number)], val_check_interval=2)
    assert handlers() == DEFAULT_HANDLERS
    resumed = make_module("toroidal", **options)
    train(resumed, start=4, val_check_interval=2)
    assert same(weights(straight), weights(resumed))


class Steps(Logger):
    """At which steps something was logged."""

    name = version = None

    def __init__(self):
        super().__init__()
        self.training, self.validations = [], []

    def log_hyperparams(self, *args):
        pass

    def log_metrics(self, metrics, step=None):
        (self.validations if "val/loss" in metrics else self.training).append(step)


@pytest.mark.parametrize(("stop", "interval"), [(4, 2), (4, 3), (3, 2)])
def test_a_resumed_run_logs_and_validates_at_the_same_steps(stop, interval, make_module, train):
    options = {"val_check_interval": interval, "log_every_n_steps": 1}
    straight, resumed = Steps(), Steps()
    train(make_module("toroidal"), "straight", logger=straight, **options)
    with pytest.raises(Interrupted):
        train(make_module("toroidal"), logger=resumed, callbacks=[SignalAt(stop)], **options)
    train(make_module("toroidal"), logger=resumed, start=stop, **options)
    assert straight.training == resumed.training
    assert straight.validations == resumed.validations
    assert len(straight.validations) == STEPS // interval


def test_a_killed_run_repeats_the_steps_since_its_checkpoint(make_module, train):
    class Kill(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 5:
                raise KeyboardInterrupt

    straight = make_module("toroidal")
    train(straight, "straight")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(make_module("toroidal"), callbacks=[Kill()], checkpoint_every_n_steps=2)
    resumed = make_module("toroidal")
    train(resumed, start=4, checkpoint_every_n_steps=2)
    assert same(weights(straight), weights(resumed))


def test_a_checkpoint_of_another_config_is_refused(make_module, train):
    train(make_module("toroidal"), checkpoint_every_n_steps=2)
    with pytest.raises(UserError, match="the checkpoint is of another config: stage 'next_token' with 12"):
        train(make_module("toroidal", layers=[0]))
    with pytest.raises(UserError, match="but this run is in stage 'transfer'"):
        train(make_module("toroidal"), name="transfer")


# Validation and early stopping


class Scripted(Callback):
    """Says what the validation loss is, and notes the weights that it belongs to."""

    def __init__(self, losses):
        self.losses, self.seen = [float(loss) for loss in losses], []

    def on_validation_epoch_end(self, trainer, module):
        self.seen.append(weights(module))
        loss = self.losses.pop(0)
        module.log_dict = lambda values: type(module).log_dict(module, values | {"val/loss": torch.tensor(loss)})


@pytest.mark.parametrize(
    ("losses", "patience", "validations", "best"),
    [
        ([3, 2, 1, 2, 2, 9, 9], 2, 5, 2),
        ([1, 2, 3, 4, 5, 6, 7], 1, 2, 0),
        ([7, 6, 5, 4, 3, 2, 1], 2, 7, 6),
        ([3, 2.95, 2.92, 9, 9, 9, 9], 2, 3, 0),  # less than min_delta better is not better
        ([2, 3, 1, 3, 0.5, 3, 4], 2, 7, 4),
    ],
)
def test_training_stops_when_the_loss_no_longer_falls_and_ends_with_the_best_weights(
    losses, patience, validations, best, make_module, train
):
    module, script = make_module("toroidal"), Scripted(losses)
    train(
        module,
        callbacks=[script],
        val_check_interval=1,
        early_stopping=EarlyStoppingSettings(patience=patience, min_delta=0.1),
    )
    assert len(script.seen) == validations
    assert same(weights(module), script.seen[best])
    if best != validations - 1:
        assert not same(weights(module), script.seen[-1])


def test_training_that_harms_ends_with_the_weights_that_scored_best(
    make_module, train, loader, blocks, trainer_options
):
    module, scores = make_module("toroidal"), []

    class Note(Callback):
        def on_validation_end(self, trainer, module):
            scores.append(trainer.callback_metrics["val/loss"].item())

    train(
        module, lr=0.5, callbacks=[Note()], val_check_interval=1,
        early_stopping=EarlyStoppingSettings(patience=3, min_delta=0.0),
    )  # fmt: skip
    assert evaluate(module, loader(blocks[8:]), trainer_options)["loss"] == pytest.approx(min(scores), rel=1e-6)


def test_without_patience_training_goes_to_the_end(make_module, train):
    script = Scripted([1, 2, 3, 4, 5, 6, 7])
    train(make_module("toroidal"), callbacks=[script], val_check_interval=1)
    assert len(script.seen) == STEPS


def test_early_stopping_is_remembered_over_a_resume():
    before = BestWeights(patience=2, min_delta=0.0)
    before.best, before.waited, before.weights = 1.5, 1, {"weight": torch.ones(2)}
    after = BestWeights(patience=2, min_delta=0.0)
    after.load_state_dict(before.state_dict())
    assert (after.best, after.waited, after.weights["weight"].tolist()) == (1.5, 1, [1, 1])


@pytest.mark.parametrize(("interval", "validations"), [(None, 0), (2, 3), (7, 1)])
def test_validation_runs_on_its_own_schedule(interval, validations, make_module, train):
    script = Scripted([1.0] * 10)
    train(make_module("toroidal"), callbacks=[script], val_check_interval=interval)
    assert len(script.seen) == validations


def test_validation_changes_nothing_in_training(make_module, train):
    trained = []
    for index, interval in enumerate([None, 1]):
        module = make_module("toroidal", options={"dropout": 0.2})
        train(module, f"stage{index}", val_check_interval=interval)
        trained.append(weights(module))
    assert same(*trained)


# Time


def test_throughput_leaves_out_warm_up_and_validation(make_module, train):
    clock = train(make_module("toroidal"), val_check_interval=1)
    assert clock.batches == STEPS
    assert clock.tokens == STEPS * 2 * 16
    assert clock.counted_tokens == (STEPS - WARM_UP_BATCHES) * 2 * 16
    assert 0 < clock.counted_seconds < clock.seconds
    assert clock.tokens_per_s == clock.counted_tokens / clock.counted_seconds


def test_throughput_counts_no_filling(make_module, blocks, trainer_options, monkeypatch):
    """Neither what fills up blocks of examples, nor what a mask leaves out; in training and in scoring."""
    masked = {"input_ids": blocks[:2], "attention_mask": torch.ones_like(blocks[:2])}
    masked["attention_mask"][:, 11:] = 0
    documents = torch.zeros_like(blocks[:3])
    documents[1, 5:], documents[2, 9:] = 1, -1
    packed = {"input_ids": blocks[:3], "documents": documents}
    clock = Throughput()
    for batch in (masked, packed, packed, masked):
        clock.on_train_batch_start()
        clock.on_train_batch_end(None, None, None, batch, 0)
    assert WARM_UP_BATCHES == 2
    assert clock.tokens == 2 * (2 * 11 + (16 + 16 + 9))
    assert clock.counted_tokens == 41 + 22
    clocks = []
    monkeypatch.setattr(
        "lightning_modules.training.trainer.Throughput", lambda: clocks.append(Throughput()) or clocks[-1]
    )
    speed = evaluate(make_module(), DataLoader([masked, packed, packed], batch_size=None), trainer_options)
    assert clocks[0].counted_tokens == 41
    assert speed["tokens_per_s"] == 41 / clocks[0].counted_seconds


class Watch(Callback):
    """What torch is set to within a step."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.seen = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory


def test_deterministic_training_does_not_fill_all_memory_that_it_allocates(make_module, train, monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    watch, before = Watch(), torch.are_deterministic_algorithms_enabled()
    try:
        train(make_module("toroidal"), callbacks=[watch], deterministic=True)
    finally:
        torch.use_deterministic_algorithms(before)
    assert watch.seen == (True, False)


def test_gradients_are_clipped_without_the_scale_of_the_loss(make_module, make_stage, loader, blocks):
    """As with 16-mixed on a GPU: here a processor computes in fp16."""
    from lightning.pytorch.plugins.precision import MixedPrecision

    from lightning_modules.training.trainer import quiet

    def trained(scale):
        module = make_module(optimizer={"lr": 1e-3}, gradient_clip_val=1e-2)
        module.begin("next_token", make_stage(module, "next_token", steps=1, batch_size=2, train="model"))
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        seen = []
        clip = module.clip_gradients
        module.clip_gradients = lambda optimizer, *options: (
            clip(optimizer, *options),
            seen.append(torch.stack([p.grad.norm() for p in module.trained_parameters().values()]).norm().item()),
        )
        with quiet():
            trainer = Trainer(
                accelerator="cpu",
                max_steps=1,
                plugins=[MixedPrecision("16-mixed", device="cpu", scaler=scaler)],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(module, loader(blocks[:2]))
        return seen

    assert trained(1024.0) == pytest.approx([1e-2], rel=1e-3)
