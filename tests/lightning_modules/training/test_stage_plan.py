"""Which stages a config asks for, and every mistake in them, told before the run starts."""

import re
import sys
from types import SimpleNamespace

import pytest
import torch
from hydra.core.config_store import ConfigStore

import train
from lightning_modules.config import EarlyStoppingSettings, read_config
from lightning_modules.load import workspace
from lightning_modules.training.stage_plan import build_stages, recovery_plan, trainer_steps, training_notes
from registries import ATTENTION
from registries.models.random import RandomModel, byte_tokenizer
from registries.registry import UserError

TOROIDAL = ("model=random", "replacement=toroidal")
NEXT_TOKEN = {"next_token": {"train": "replaced"}}


def config(*overrides):
    return read_config(train.compose(["model=random", "dataset=periodic", *overrides]))


# The plan


@pytest.mark.parametrize(
    ("overrides", "plan"),
    [
        ([], {}),
        (["model.freeze=false"], {"next_token": {"train": "model"}}),
        (["model.freeze=false", "trainer.max_steps=0"], {}),
        (["replacement=toroidal"], {"transfer": {}, **NEXT_TOKEN}),
        (["replacement=toroidal", "replacement.transfer_steps=0"], NEXT_TOKEN),
        (["replacement=toroidal", "trainer.max_steps=0"], {"transfer": {}}),
        (["replacement=toroidal", "trainer.max_steps=0", "trainer.max_epochs=3"], {"transfer": {}}),
        (["replacement=toroidal", "replacement.transfer_steps=0", "trainer.max_steps=0"], {}),
        (["replacement=toroidal", "model.freeze=false"], {"transfer": {}, "next_token": {"train": "model"}}),
        (["replacement=toroidal", "trainer.max_steps=-1", "trainer.max_epochs=2"], {"transfer": {}, **NEXT_TOKEN}),
    ],
    ids=" ".join,
)
def test_no_recovery_stands_for_transfer_then_next_token(overrides, plan):
    assert recovery_plan(config(*overrides)) == plan
    assert list(recovery_plan(config(*overrides, "recovery=none"))) == list(plan)


def test_stages_come_in_the_order_they_are_named():
    for names in (["transfer", "lora", "next_token"], ["next_token", "lora", "transfer"], ["kl", "block_wise"]):
        assert list(recovery_plan(config("replacement=toroidal", f"recovery=[{','.join(names)}]"))) == names


def test_what_is_named_is_all_there_is():
    own = ("replacement.transfer_steps=5", "trainer.max_steps=5")
    plan = recovery_plan(config("replacement=toroidal", "recovery=[lora]", "recovery.lora.rank=2", *own))
    assert list(plan) == ["lora"]
    assert plan["lora"]["rank"] == 2


@pytest.mark.parametrize(
    ("max_steps", "max_epochs", "max_tokens", "blocks", "steps"),
    [
        (5, None, None, 12, 5),
        (0, None, None, 12, 0),
        (-1, 2, None, 12, 6),
        (-1, 2, None, 13, 7),  # the last step goes on into a third epoch
        (5, 2, None, 12, 5),
        (9, 2, None, 12, 6),
        (9, 2, None, 0, 9),  # blocks not known yet
        (-1, 2, None, 0, None),
        (-1, None, None, 12, None),
        (-1, None, 400, 12, 10),  # of 4 blocks of 10 tokens
        (-1, None, "0.399K", 12, 9),
        (-1, 2, 400, 12, 6),
        (5, None, 400, 12, 5),
        (9, None, 320, 12, 8),
    ],
)
def test_steps_of_the_trainer(max_steps, max_epochs, max_tokens, blocks, steps):
    trainer = SimpleNamespace(max_steps=max_steps, max_epochs=max_epochs, max_tokens=max_tokens, max_flops=None)
    assert trainer_steps(trainer, blocks, 4, 10) == steps


def test_operations_are_a_budget_of_steps():
    trainer = SimpleNamespace(max_steps=-1, max_epochs=None, max_tokens=None, max_flops=1000.0)
    assert trainer_steps(trainer, 12, 4, 10, flops=5.0) == 5  # of 200 operations
    assert trainer_steps(trainer, 12, 4, 10, flops=5.1) == 4
    assert trainer_steps(trainer, 12, 4, 10) is None
    with pytest.raises(UserError, match="less than one step, which takes 1.2e\\+03"):
        trainer_steps(trainer, 12, 4, 10, flops=30.0)


# What null stands for

GENERAL = (
    "replacement=toroidal",
    "replacement.transfer_steps=11",
    "replacement.transfer_lr=0.5",
    "replacement.transfer_batch_size=3",
    "trainer.max_steps=13",
    "trainer.accumulate_grad_batches=2",
    "optimizer.lr=0.25",
    "dataset.batch_size=2",
)
OF_LAYERS, OF_MODEL = (11, 0.5, 3), (13, 0.25, 4)


@pytest.fixture
def stages(make_module, tmp_path):
    """The stages of a config, as built for 12 training blocks: name -> (steps, lr, batch_size)."""
    module = make_module("toroidal")

    def build(*overrides):
        cfg = config(*overrides, f"cache_dir={tmp_path / 'cache'}")
        built = build_stages(cfg, workspace(module, cfg, train_blocks=torch.zeros(12, 16)))
        return {name: (stage.steps, stage.lr, stage.batch_size) for name, stage in built.items()}

    return build


def test_null_is_the_general_setting(stages):
    expected = {"transfer": OF_LAYERS, "next_token": OF_MODEL}
    assert stages(*GENERAL) == expected
    everything = "recovery=[transfer,block_wise,next_token,lora,kl]"
    assert stages(*GENERAL, everything, "recovery.lora.lr=null") == {
        **expected,
        "block_wise": OF_LAYERS,
        "lora": OF_MODEL,
        "kl": OF_MODEL,
    }


@pytest.mark.parametrize("name", ["transfer", "block_wise", "next_token", "lora", "kl"])
def test_a_stages_own_keys_come_first(stages, name):
    own = [f"recovery.{name}.{key}" for key in ("steps=2", "lr=0.125", "batch_size=5")]
    assert stages(*GENERAL, f"recovery=[{name}]", *own) == {name: (2, 0.125, 5)}


def test_lora_has_a_rate_of_its_own(stages):
    assert stages(*GENERAL, "recovery=[lora]") == {"lora": (13, 1e-3, 4)}


def test_epochs_are_counted_in_the_stages_own_batches(stages):
    epochs = ("trainer.max_steps=-1", "trainer.max_epochs=2", "recovery=[next_token,kl]", "recovery.kl.batch_size=8")
    assert [steps for steps, _, _ in stages(*GENERAL, *epochs).values()] == [6, 3]


# Mistakes


def errors(*overrides):
    with pytest.raises(UserError) as caught:
        train.compose(overrides)
    return caught.value.messages


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recovery=[transfer]"], "recovery.transfer trains nothing: no layer is replaced"),
        (["recovery=[block_wise]"], "recovery.block_wise trains nothing: no layer is replaced"),
        (["recovery=[next_token]"], "Choose a replacement, or train=model"),
        (["recovery=[lora]"], "Choose a replacement, or layers=all"),
        (["recovery=[kl]", "recovery.kl.train=model"], "recovery.kl imitates the untouched model, which this is"),
        (
            ["recovery=[lora]", "recovery.lora.layers=all", "recovery.lora.objective=kl"],
            "recovery.lora imitates the untouched model, which this is",
        ),
        (["replacement=toroidal", "recovery=[lroa]"], "lroa is no option; did you mean 'lora'?"),
        (["replacement=toroidal", "recovery=[lora]", "recovery.lora.rnk=2"], "did you mean 'recovery.lora.rank'?"),
        (["replacement=toroidal", "recovery=[lora]", "+recovery.lora.rnk=2"], "has no key 'rnk'; did you mean 'rank'?"),
        (["replacement=toroidal", "recovery=[lora]", "recovery.lora.rank=0"], "rank=0 is not valid"),
        (["replacement=toroidal", "recovery=[lora]", "recovery.lora.objective=mse"], "'next_token' or 'kl'"),
        (["replacement=toroidal", "recovery=[kl]", "recovery.kl.steps=0"], "steps=0 is not valid"),
        (["replacement=toroidal", "recovery=[kl]", "recovery.kl.train=all"], "'replaced' or 'model'"),
        (
            ["replacement=toroidal", "recovery=[transfer]", "replacement.transfer_steps=0"],
            "recovery.transfer.steps=null takes replacement.transfer_steps, which is 0: the stage trains nothing",
        ),
        (
            ["replacement=toroidal", "recovery=[block_wise]", "replacement.transfer_steps=0"],
            "recovery.block_wise.steps=null takes replacement.transfer_steps, which is 0",
        ),
        (
            ["replacement=toroidal", "recovery=[next_token]", "trainer.max_steps=0"],
            "recovery.next_token.steps=null takes trainer.max_steps, which is 0: the stage trains nothing",
        ),
        (
            ["replacement=toroidal", "recovery=[lora]", "recovery.lora.roles=[attention.qery,mlp]"],
            "recovery.lora.roles: role 'attention.qery' is none of this model's; did you mean 'attention.query'?",
        ),
        (
            ["replacement=toroidal", "model.family=gpt2", "recovery=[lora]", "recovery.lora.roles=[attention.query]"],
            "did you mean 'attention.qkv'?",
        ),
        (
            ["replacement=toroidal", "recovery=[lora]", "recovery.lora.roles=[]"],
            "recovery stage 'lora': roles=[] is not valid",
        ),
        (
            ["replacement=toroidal", "recovery=[lora]", "recovery.lora.layers=[0,2]"],
            "recovery.lora.layers=[0, 2] names layer 2, but this model's layers are 0 to 1 (or -2 to -1); or replaced",
        ),
        (["replacement=toroidal", "recovery=[lora]", "recovery.lora.layers=replcaed"], "is not a layer spec"),
        (
            ["replacement=toroidal", "recovery=[kl]", "recovery.kl.teacher=/no/such/model"],
            "/no/such/model",
        ),
        (
            ["replacement=toroidal", "recovery=[kl,transfer,kl]"],
            "kl",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_one_error_says_what_is_wrong(overrides, message):
    (found,) = errors("model=random", *overrides)
    assert message in found


def test_kl_without_a_replacement_neither_trains_nor_learns():
    """Two ways out are to be told: another thing to train, and then another thing to learn."""
    (nothing,) = errors("model=random", "recovery=[kl]")
    assert "Choose a replacement, or train=model" in nothing
    (imitates,) = errors("model=random", "recovery=[kl]", "recovery.kl.train=model")
    assert "choose a replacement or a teacher" in imitates


@pytest.mark.parametrize(
    "overrides",
    [
        ["recovery=[next_token]", "recovery.next_token.train=model"],
        ["recovery=[lora]", "recovery.lora.layers=all"],
        [*TOROIDAL, "recovery=[next_token]", "trainer.max_steps=0", "recovery.next_token.steps=2"],
        [*TOROIDAL, "recovery=[transfer]", "replacement.transfer_steps=0", "recovery.transfer.steps=2"],
        [*TOROIDAL, "recovery=[transfer]", "trainer.max_steps=0"],
        [*TOROIDAL, "recovery=[transfer]", "recovery.transfer.attention_weight=0.5"],
        [*TOROIDAL, "recovery=[lora]", "recovery.lora.layers=last:1", "recovery.lora.roles=[mlp.up,attention]"],
        [*TOROIDAL, "trainer.gradient_checkpointing=true"],
        ["trainer.gradient_checkpointing=true", "model.freeze=false"],
    ],
    ids=" ".join,
)
def test_what_is_right(overrides):
    train.compose(["model=random", *overrides])


def test_all_errors_of_all_stages_come_at_once():
    messages = errors(
        *TOROIDAL,
        "recovery=[transfer,lora,next_token]",
        "replacement.transfer_steps=0",
        "trainer.max_steps=0",
        "recovery.lora.roles=[atention]",
        "recovery.lora.layers=[9]",
    )
    parts = ("recovery.transfer.steps", "recovery.lora.steps", "'atention'", "layer 9", "recovery.next_token.steps")
    for message, part in zip(messages, parts, strict=True):
        assert part in message


@pytest.fixture
def teacher(tmp_path):
    """A model folder with a vocabulary of this size."""

    def save(vocab_size):
        torch.manual_seed(3)
        RandomModel(vocab_size=vocab_size, hidden_size=32).model(torch.float32).save_pretrained(tmp_path / "teacher")
        byte_tokenizer().save_pretrained(tmp_path / "teacher")
        return tmp_path / "teacher"

    return save


def test_a_teacher_with_another_vocabulary(teacher):
    (message,) = errors(*TOROIDAL, "recovery=[kl]", f"recovery.kl.teacher={teacher(600)}")
    assert "teacher has a vocabulary of 600 tokens, the model has 512: take one with the same tokenizer" in message


def test_a_teacher_is_enough_to_learn_from_without_a_replacement(teacher):
    own = ["recovery=[kl]", f"recovery.kl.teacher={teacher(512)}", "recovery.kl.train=model"]
    train.compose(["model=random", *own])


def test_a_damaged_teacher(teacher):
    folder = teacher(512)
    (folder / "config.json").write_text("{")
    (message,) = errors(*TOROIDAL, "recovery=[kl]", f"recovery.kl.teacher={folder}")
    assert "recovery.kl.teacher" in message


PLUGIN = """
from torch import nn
from registries import ATTENTION


@ATTENTION.register("restless")
class Restless(nn.Module):
    own_positions = keeps_function = repeatable = False

    def __init__(self, shape):
        super().__init__()
"""


@pytest.fixture
def restless(tmp_path, monkeypatch):
    """Overrides of a core that neither tells its attention weights nor computes the same twice."""
    ATTENTION.names()  # what comes with the project is registered once and for all
    monkeypatch.setattr(ATTENTION, "_components", dict(ATTENTION._components))
    repository = ConfigStore.instance().repo
    monkeypatch.setitem(repository, "replacement", dict(repository.get("replacement", {})))
    (tmp_path / "restless_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    yield ("model=random", "plugins=[restless_plugin]", "replacement=restless")
    sys.modules.pop("restless_plugin", None)


def test_weights_of_a_core_that_does_not_tell_them(restless):
    own = ("recovery=[transfer]", "recovery.transfer.attention_weight=0.5")
    (message,) = errors(*restless, *own)
    assert message == (
        "recovery.transfer.attention_weight: 'restless' does not tell its attention weights; set it to 0"
    )
    train.compose([*restless, "recovery=[transfer]"])


@pytest.mark.parametrize("recovery", ["none", "[lora]"])
def test_checkpointing_a_core_that_does_not_compute_the_same_twice(restless, recovery):
    own = (f"recovery={recovery}", "trainer.gradient_checkpointing=true")
    (message,) = errors(*restless, *own)
    assert message.startswith("trainer.gradient_checkpointing=true: replacement 'restless' forbids it")
    train.compose([*restless, f"recovery={recovery}"])


# What training does otherwise than its keys may be read


def notes_of(steps, batch_size, blocks, scope="model", patience=None, interval=None, max_epochs=None, max_tokens=None):
    workspace = SimpleNamespace(block_size=10)
    stage = SimpleNamespace(steps=steps, batch_size=batch_size, scope=scope, workspace=workspace)
    stopping = EarlyStoppingSettings(patience=patience, min_delta=0.0)
    trainer = SimpleNamespace(
        max_epochs=max_epochs, max_tokens=max_tokens, early_stopping=stopping, val_check_interval=interval
    )
    return training_notes("kl", stage, trainer, blocks)


@pytest.mark.parametrize(
    ("steps", "batch_size", "blocks", "max_epochs", "note"),
    [
        (
            1,
            8,
            3,
            1,
            "1 steps of 8 blocks are 2.67 passes over the 3 training blocks, more than max_epochs=1: every",
        ),
        (7, 4, 13, 2, "are 2.15 passes .* for exactly 2 take a batch size that divides 26"),
        (100, 4, 13, 2, "are 30.77 passes .*: its own number of steps decides"),
        (6, 4, 12, 2, None),
        (5, 4, 13, 2, None),
        (100, 4, 13, None, None),
    ],
)
def test_more_passes_than_asked_for_are_told(steps, batch_size, blocks, max_epochs, note):
    notes = notes_of(steps, batch_size, blocks, max_epochs=max_epochs)
    assert len(notes) == (note is not None)
    assert not notes or re.search(note, notes[0])


@pytest.mark.parametrize(
    ("steps", "patience", "interval", "note"),
    [
        (100, 3, 250, "patience=3 takes 4 validations, .* every 250 steps, and there are 100 steps; .* at most 24"),
        (100, 3, 25, "at most 24"),  # it would stop after the last step
        (100, 3, 24, None),
        (3, 3, 1, "train longer"),
        (100, None, 250, None),
    ],
)
def test_early_stopping_that_cannot_act_is_told(steps, patience, interval, note):
    notes = notes_of(steps, 4, 12, patience=patience, interval=interval)
    assert len(notes) == (note is not None)
    assert not notes or re.search(note, notes[0])
    if patience:
        assert "does not watch" in notes_of(steps, 4, 12, "layers", patience, interval)[0]


def test_a_budget_of_tokens_that_is_not_used_up_is_told():
    assert notes_of(10, 4, 12, max_tokens=439) == []  # 11 steps would be more
    (note,) = notes_of(9, 4, 12, max_tokens="0.4K")
    assert "9 steps are 360 tokens, fewer than trainer.max_tokens=0.4K" in note
    assert notes_of(9, 4, 12, "layers", max_tokens="0.4K") == []


def test_a_budget_of_less_than_a_step():
    lines = ["model=random", "model.freeze=false", "dataset.block_size=64", "dataset.batch_size=2"]
    with pytest.raises(UserError, match=r"trainer.max_tokens=100 is less than one step.*128 at least"):
        train.compose([*lines, "trainer.max_tokens=100"])
    train.compose([*lines, "trainer.max_tokens=128"])
