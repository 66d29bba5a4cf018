"""Every mistake on a command line: found before the run starts, all in one message."""

import math
from collections import Counter

import pytest
import torch
from omegaconf import OmegaConf

import train
from registries.registry import UserError
from studies.config import check as schema
from studies.config import composer
from studies.config.command_line import check_command_line

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
        (["tracking=none", "+tracking.uri=x"], ["+tracking.uri=x: tracking is none, which has no keys"]),
        (["tracking.name=other"], ["tracking.name=other", "chosen by tracking=other"]),
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


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["samples=0"], ["samples=0", "has keys of its own"]),
        (["samples={max_tokens:0}"], ["'samples.max_tokens'", "max_new_tokens"]),
        (["+adapter.batch_size=toroidal"], ["adapter is none"]),
        (["communication=none"], ["communication='none'", "has keys of its own"]),
        (["trainer.early_stopping=3"], ["early_stopping=3", "has keys of its own"]),
        (["adapter=ridge", "dataset.block_size=abc"], ["block_size='abc'"]),
        (["compressor=pooling", "dataset.block_size=abc"], ["block_size='abc'"]),
        ([*TOROIDAL, "replacement.layers=1.5"], ["layers=1.5"]),
        ([*TOROIDAL, "replacement.layers=0-999999999"], ["0-999999999", "0 to 1"]),
        (["replacement.name=toroidal"], ["chosen by replacement=toroidal"]),
        (["source.name=tiny_phi"], ["chosen by model@source=tiny_phi"]),
        (["recovery=[kl]", *TOROIDAL, "recovery.kl=3"], ["recovery.kl=3", "has keys of its own"]),
        (["+recovery.kl.steps=3"], ["recovery"]),
        (["model=phi2", "model.path=a b"], ["'a b'", "neither a folder", "hub"]),
        (["model=phi2", "model.path=~nobody_at_all/x"], ["~nobody_at_all/x"]),
        (["model=random", "model.num_layers=1000000000"], ["num_layers=1000000000", "10000"]),
        (["dataset=text", f"dataset.path={'x' * 300}"], ["does not exist"]),
        (["experiment=3"], ["experiment=3 is no option"]),
        (["seed=${seed}"], ["seed", "ecursive"]),
        (["samples=${nowhere}"], ["samples", "nowhere"]),
        (["+sample.max_new_tokens=3"], ["'sample.max_new_tokens'", "'samples.max_new_tokens'"]),
        (["hydra.callbacks=3"], ["hydra.callbacks=3", "Cannot assign int"]),
        (["plugins=3"], ["plugins=3", "list"]),
        (["cache_dir="], ["cache_dir is empty"]),
        (["output_dir=3"], ["output_dir=3", "as a text, type 'output_dir=\"3\"'"]),
        (["dataset=text", "dataset.path=a=b"], ["cannot read", "type 'dataset.path=\"a=b\"'"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) and "=" in value[0] else None,
)
def test_a_value_of_another_shape_is_told(overrides, parts):
    messages = errors(*overrides)
    assert [part for part in parts if not any(part in message for message in messages)] == []


@pytest.mark.parametrize(
    ("sweep", "part"),
    [
        (["seed=range(0)"], "names no value"),
        (["optimizer.lr=glob(*)"], "names no option of a config group"),
        (["experiment=depth,init"], "run one at a time"),
        (["experiment=depth", "experiment=init"], "run one at a time"),
        (["hydra.verbose=true,false"], "cannot be swept over"),
        (["optimizer.lr=interval(0.1,1)"], "one by one"),
        (["seed=range(0,200)", "optimizer.lr=range(1,100)"], "more than 10,000 jobs"),
    ],
)
def test_a_sweep_that_is_none(sweep, part):
    with pytest.raises(UserError, match=part):
        check_command_line(["model=random", *sweep], True, "config")


def test_a_glob_over_a_group_is_spelled_out_for_hydra():
    handed, *_ = check_command_line(
        [*TOROIDAL[:1], "replacement=glob([s*,t*])", "replacement.init=copy"], True, "config"
    )
    assert handed == ["model=random", "replacement=choice(standard,toroidal)", "replacement.init=choice(copy)"]


def test_a_folder_of_experiments_of_ones_own(tmp_path):
    (tmp_path / "experiment").mkdir()
    lines = ["# @package _global_", "experiment: {name: mine}", "axes: {seeds: '3,4'}"]
    lines += ["hydra: {sweeper: {params: {seed: '${axes.seeds}'}}}"]
    (tmp_path / "experiment" / "mine.yaml").write_text("\n".join(lines))
    asked = ["model=random", "experiment=mine"]
    swept = check_command_line(asked, False, "config", more=str(tmp_path))
    assert swept.sweeping
    assert "seed=3,4" in swept.overrides
    search_path = f"hydra.searchpath=[file://{tmp_path}]"
    handed = check_command_line([search_path, *asked], False, "config").overrides
    assert [line for line in handed if "searchpath" in line] == [search_path]
    with pytest.raises(UserError, match="experiment=mine is no option"):
        check_command_line(asked, False, "config")
    with pytest.raises(UserError, match="/nowhere is no folder"):
        check_command_line(["hydra.searchpath=[/nowhere]", *asked], False, "config")


def test_a_primary_config_of_ones_own_that_lacks_what_a_run_needs(tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 1")
    with pytest.raises(UserError, match="has no key 'adapter': a primary config must build on ours"):
        check_command_line([], False, "mine", more=str(tmp_path))


def test_an_empty_cache_variable_is_not_set(monkeypatch):
    monkeypatch.setenv("GRAFTLAB_CACHE", "")
    assert train.compose(["model=random"]).cache_dir == "~/.cache/graftlab"


def test_what_jobs_of_a_sweep_have_in_common_is_checked_once(monkeypatch):
    calls, checks = Counter(), schema.CHECKS

    def counted(number, check):
        def find(cfg):
            calls[number] += 1
            return check.find(cfg)

        return check._replace(find=find)

    compositions = []
    hydra_compose = composer.hydra_compose
    monkeypatch.setattr(composer, "hydra_compose", lambda *a, **o: compositions.append(a) or hydra_compose(*a, **o))
    monkeypatch.setattr(schema, "CHECKS", tuple(counted(*item) for item in enumerate(checks)))
    axes = ["replacement.depth=1,2,4", "optimizer.lr=1,2,3,4", "placement=all_linear,attention"]
    check_command_line([*TOROIDAL, *axes, "seed=range(0,9)"], True, "config")
    expected = {"replacement.depth": 3, "optimizer.lr": 4, "placement": 2}
    for number, check in enumerate(checks):
        varied = [count for key, count in expected.items() if key.split(".")[0] in check.reads]
        assert calls[number] == math.prod(varied), check
    assert len(compositions) == expected["placement"]


def test_values_of_one_job_are_not_left_for_the_next():
    sweep = ["trainer.early_stopping={patience:1},{min_delta:-1}", "recovery=[kl],[transfer]", "optimizer.lr=-1,1"]
    with pytest.raises(UserError) as caught:
        check_command_line([*TOROIDAL, *sweep], True, "config")
    assert len(caught.value.messages) == 2
    with pytest.raises(UserError, match="lr=-1"):
        check_command_line(
            [*TOROIDAL, "seed=${trainer.max_steps}", "trainer.max_steps=1,2", "optimizer.lr=1,-1"], True, "config"
        )
    with pytest.raises(UserError, match="seed=-1"):
        check_command_line(
            ["seed=${trainer.max_steps}", "trainer.max_epochs=1", "trainer.max_steps=1,-1"], True, "config"
        )


@pytest.mark.parametrize(
    ("axes", "composed"),
    [
        (["model=random,tiny_phi", "placement=none,attention", "optimizer=adamw,sgd"], 4),
        (["adapter=none,ridge", "dataset=pydoc,pycode"], 4),  # an adapter brings data of its own
    ],
)
def test_options_that_are_put_together_make_the_config_that_hydra_composes(axes, composed, monkeypatch):
    compositions, configs = [], {}
    hydra_compose, checked = composer.hydra_compose, composer.Composer.checked

    def kept(self, parsed, errors):
        cfg = checked(self, parsed, errors)
        configs[tuple(item.input_line for item in parsed)] = OmegaConf.to_container(cfg)
        return cfg

    with monkeypatch.context() as patch:
        patch.setattr(composer, "hydra_compose", lambda *a, **o: compositions.append(a) or hydra_compose(*a, **o))
        patch.setattr(composer.Composer, "checked", kept)
        check_command_line(axes, True, "config")
    assert len(compositions) == composed
    assert len(configs) == 2 ** len(axes)
    for lines, cfg in configs.items():
        assert cfg == OmegaConf.to_container(train.compose(lines)), lines
