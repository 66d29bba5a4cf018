"""Every mistake on a command line: found before the run starts, all in one message."""

import pytest
import torch

import train
from registries.registry import UserError
from studies.compose import check_command_line

TOROIDAL = ["model=random", "replacement=toroidal"]


def errors(*overrides):
    with pytest.raises(UserError) as caught:
        train.compose(overrides)
    return caught.value.messages


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["replacement=toroidl"], ["replacement=toroidl", "did you mean 'toroidal'?", "standard", "window", "none"]),
        (["model=nothing_like_it"], ["model=nothing_like_it is no option.", "smollm2_135m"]),
        (["tracking=mlfow"], ["'mlflow'", "server"]),
        (["trainer.max_step=3"], ["'trainer.max_step'", "'trainer.max_steps'"]),
        (["seeds=3"], ["'seeds'", "'seed'"]),
        (["replacment=toroidal"], ["'replacment'", "'replacement'"]),
        ([*TOROIDAL, "replacement.dept=3"], ["'replacement.dept'", "'replacement.depth'", "lambda_distance"]),
        (["+sedes=3"], ["no key 'sedes'"]),
        (["replacement=window", "+replacement.depth=3"], ["no key 'depth'", "period"]),
        (["trainer.max_steps=many"], ["trainer: max_steps='many'", "integer"]),
        (["seed=-1"], ["seed=-1", "greater than or equal to 0"]),
        (["optimizer.lr=0"], ["lr=0", "greater than 0"]),
        (["optimizer.beta1=1"], ["beta1=1", "less than 1"]),
        (["optimizer.schedule=step"], ["schedule='step'", "'cosine', 'linear' or 'constant'"]),
        pytest.param(
            ["trainer=gpu"],
            ["there is no GPU here", "trainer=cpu"],
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (["trainer.precision=8"], ["precision=8", "'bf16-mixed'"]),
        (["trainer.early_stopping.patience=0"], ["trainer.early_stopping: patience=0"]),
        (["trainer.max_steps=-1"], ["trainer.max_steps=-1", "trainer.max_epochs"]),
        (["trainer.early_stopping.patience=2", "trainer.val_check_interval=null"], ["patience", "val_check_interval"]),
        (["samples.max_new_tokens=-1"], ["samples: max_new_tokens=-1"]),
        (["tracking.uri=null"], ["tracking: uri=None", "valid string"]),
        (["tracking.uri=htp://host:5000"], ["htp://host:5000", "did you mean 'http'?"]),
        (["tracking.uri=runs.db"], ["tracking.uri=runs.db", "sqlite:///<file>"]),
        (["tracking.uri=http://:5000"], ["names no host"]),
        (["tracking=server", "tracking.uri=http://host:port"], ["tracking.uri=http://host:port", "Port"]),
        (["tracking.experiment=''"], ["tracking: experiment=''"]),
        (["tracking.experiment=3"], ["tracking: experiment=3", "string"]),
        (["+tracking.url=x"], ["no key 'url'", "'uri'"]),
        (["tracking=none", "+tracking.uri=x"], ["tracking=none has no key 'uri'"]),
        (["tracking.name=other"], ["tracking.name='other'", "mlflow"]),
        (["on_failure=panic"], ["on_failure='panic'", "'continue' or 'stop'"]),
        (["dataset.block_size=1"], ["block_size=1", "2"]),
        (["dataset=text"], ["dataset.path"]),
        (["dataset=text", "dataset.path=/no/such/file"], ["/no/such/file"]),
        (["dataset=periodic", "dataset.train_size=null"], ["dataset.train_size"]),
        ([*TOROIDAL, "replacement.layers=[2]"], ["replacement.layers=[2]", "0 to 1"]),
        ([*TOROIDAL, "replacement.layers=[0,-2]"], ["layer 0 twice"]),
        ([*TOROIDAL, "replacement.layers=some"], ["'some'", "every:4"]),
        ([*TOROIDAL, "replacement.depth=3"], ["replacement.depth=3", "Allowed: [1, 2, 4, 8]"]),
        (["model=phi2", "replacement=toroidal", "replacement.depth=3"], ["Allowed: [1, 2, 4, 8, 16]"]),
        (["model=phi2", "model.path=/no/model"], ["model.path=/no/model", "no such folder"]),
        (["seed=[1"], ["cannot read 'seed=[1'"]),
        (["plugins=[1"], ["cannot read 'plugins=[1'"]),
        (["trainer.max_steps=${nowhere}"], ["nowhere"]),
        (["seed=1,2"], ["seed=1,2", "-m"]),
        (["~trainer"], ["trainer"]),
        (["~seed"], ["seed"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "=" in value[0] else None,
)
def test_one_error_names_the_value_and_what_is_allowed(overrides, parts):
    (message,) = errors(*overrides)
    assert [part for part in parts if part not in message] == []


def test_all_errors_come_in_one_message():
    wrong = ["seed=-1", "trainer.max_step=3", "replacement=toroidl", "replacement.depth=3", "optimizer.lr=-1"]
    messages = errors("model=random", *wrong)
    assert len(messages) == len(wrong)
    for part in ("seed=-1", "trainer.max_step", "toroidl", "replacement.depth=3", "lr=-1"):
        assert sum(part in message for message in messages) == 1, part


def test_without_a_near_option_its_keys_are_not_judged():
    assert len(errors("replacement=xyz", "replacement.depth=3")) == 1


def test_a_model_folder_without_weights(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (message,) = errors("model=phi2", f"model.path={tmp_path}")
    assert "holds no weights" in message


def test_every_seed_is_checked(small):
    with pytest.raises(UserError, match="seed=-1"):
        check_command_line([*TOROIDAL, "replacement.depth=2,4", "seed=0,1,-1"], True, "config")
    with pytest.raises(UserError, match="replacement.depth=3"):
        check_command_line([*TOROIDAL, "seed=0,1", "replacement.depth=2,3"], True, "config")


def test_a_valid_sweep_has_no_errors():
    sweep = [*TOROIDAL, "replacement.depth=1,2,4", "replacement.layers=[0],[0,1]", "seed=range(0,3)"]
    assert check_command_line(sweep, True, "config")[:2] == (sweep, True)


def test_values_of_a_swept_group_are_handed_to_hydra_as_sweeps_of_one():
    fixed = ["model=random", "replacement.layers=[0,1]", "replacement.init=random"]
    handed, *_ = check_command_line(["replacement=toroidal,window", *fixed], True, "config")
    assert handed == [
        "replacement=toroidal,window",
        "model=random",
        "replacement.layers=choice([0,1])",
        "replacement.init=choice(random)",
    ]


@pytest.mark.parametrize(
    ("sweep", "parts"),
    [
        (["replacement.depth=2,3,4,5"], ["depth=3", "depth=5"]),
        (["replacement.layers=[0],[7]", "seed=1,2"], ["[7]"]),
        (["optimizer.lr=choice(0.1,-0.1)"], ["lr=-0.1"]),
        (["optimizer.lr=interval(-1,1)"], ["lr=-1"]),
    ],
)
def test_every_job_of_a_sweep_is_checked_and_each_error_is_told_once(sweep, parts):
    with pytest.raises(UserError) as caught:
        check_command_line([*TOROIDAL, *sweep], True, "config")
    assert len(caught.value.messages) == len(parts)
    for message, part in zip(caught.value.messages, parts, strict=True):
        assert part in message


def test_a_swept_option_that_does_not_exist():
    with pytest.raises(UserError, match="replacement=toroidl is no option; did you mean 'toroidal'?"):
        check_command_line(["model=random", "replacement=toroidl,window"], True, "config")


def test_a_list_of_values_needs_the_sweep_flag():
    with pytest.raises(UserError, match=r"replacement.depth=2,4 names several values: add -m"):
        check_command_line([*TOROIDAL, "replacement.depth=2,4"], False, "config")
