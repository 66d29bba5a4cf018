"""The experiments that conf/experiment describes, as far as it can be told without running them at full size."""

import json
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

import train
from lightning_modules.config import read_config
from registries.registry import UserError
from studies.config.command_line import check_command_line
from studies.run.fingerprint import fingerprint

CONF = Path(__file__).resolve().parent.parent.parent / "conf"
FILES = {file.stem: yaml.safe_load(file.read_text()) for file in sorted((CONF / "experiment").glob("*.yaml"))}
AXES = {name: values.get("hydra", {}).get("sweeper", {}).get("params", {}) for name, values in FILES.items()}
MODELS = {"default": [], "tiny_phi": ["model=tiny_phi"], "random": ["model=random"]}


def check(*overrides):
    return check_command_line(list(overrides), False, "config")[:2]


def swept(handed):
    """Key -> values of what Hydra is told to sweep over; of a sweep of one, as Hydra is handed them, none."""
    parsed = OverridesParser.create().parse_overrides(handed)
    sweeps = {item.key_or_group: list(item.sweep_string_iterator()) for item in parsed if item.is_sweep_override()}
    return {key: values for key, values in sweeps.items() if len(values) > 1}


@pytest.mark.each_value
@pytest.mark.parametrize(
    ("model", "size"), [("default", "full"), *((model, "small") for model in ("default", "tiny_phi", "random"))]
)
@pytest.mark.parametrize("name", FILES)
def test_every_job_of_every_experiment_is_right(name, model, size, finished_context_run):
    from_scratch = FILES[name].get("defaults", [""])[0] == "/base/scratch_budget"
    if from_scratch and model != "default":
        pytest.skip("it trains models of its own")
    own = [f"expansion.run={finished_context_run}"] if name == "expansion" else []
    family = ["model=random", "model.family=gpt2"] if name == "placement_documents" else MODELS[model]
    # Half of all_linear's parameters do not fit into the output projections of a model that is 64 wide.
    wide = ["model.hidden_size=128"] if "model=random" in family else []
    handed, sweeping = check(f"experiment={name}", f"size={size}", *family, *wide, *own)
    assert sweeping == bool(AXES[name])
    assert swept(handed).keys() == AXES[name].keys()


@pytest.mark.parametrize("name", [name for name in FILES if name != "none"])
def test_every_experiment_is_named_after_its_file_and_starts_from_the_budget(name):
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    assert FILES[name]["experiment"]["name"] == name
    assert FILES[name]["defaults"][0] in tuple(
        f"/base/{budget}" for budget in ("budget", "instruction_budget", "adapter_budget", "scratch_budget")
    )


@pytest.mark.parametrize("size", ["full", "small"])
def test_an_experiment_computes_what_its_size_says(size):
    cfg = train.compose(["experiment=depth", "model=random", f"size={size}"])
    values = yaml.safe_load((CONF / "size" / f"{size}.yaml").read_text())
    assert cfg.dataset.block_size == values["block_size"]
    assert cfg.dataset.val_size == cfg.dataset.test_size == values["val_size"]
    assert cfg.replacement.transfer_steps == values["transfer_steps"]
    assert cfg.trainer.max_steps == values["max_steps"]
    assert cfg.controls == ["original"]


def test_size_alone_changes_nothing():
    """It only counts where an experiment takes its values from it."""
    full, small = (read_config(train.compose(["model=random", f"size={size}"])) for size in ("full", "small"))
    assert full.plain["size"] != small.plain["size"]
    assert fingerprint(full, "data") == fingerprint(small, "data")


def test_values_count_and_not_the_name_they_come_under():
    """The same values on the command line, under another size and no experiment, are the same run."""
    own = ["experiment=extended", "model=random", "size=small"]
    cfg = read_config(train.compose(own))
    dataset = ["dataset.block_size=256", "dataset.val_size=12", "dataset.test_size=12", "dataset.train_size=16"]
    trainer = ["trainer.max_steps=-1", "trainer.max_epochs=5", "trainer.val_check_interval=null"]
    others = ["replacement=toroidal", "replacement.transfer_steps=60", "samples.max_new_tokens=0"]
    by_hand = ["model=random", "size=full", "controls=[original]", *dataset, *trainer, *others]
    assert fingerprint(read_config(train.compose(by_hand)), "data") == fingerprint(cfg, "data")
    assert fingerprint(read_config(train.compose([*own, "size=full"])), "data") != fingerprint(cfg, "data")


def test_the_axes_become_the_sweep_without_a_flag():
    handed, sweeping = check("experiment=depth", "model=random")
    assert sweeping
    assert "replacement.depth=1,2,4,8" in handed
    assert "hydra.sweeper.params=null" in handed  # or Hydra would sweep over them a second time
    assert check_command_line(["experiment=depth", "model=random"], True, "config")[:2] == (handed, True)


def test_several_axes_are_swept_together():
    handed, _ = check("experiment=periodic", "model=random")
    assert swept(handed) == {
        "replacement.period": ["32", "2048"],
        "replacement.position": ["model", "toroidal"],
    }


def test_axes_may_depend_on_the_size():
    for size, lengths in (("full", ["2048", "4096", "8192"]), ("small", ["512", "1024", "2048"])):
        assert swept(check("experiment=length", f"size={size}")[0]) == {"dataset.block_size": lengths}
    handed, _ = check("experiment=length", "size.lengths='64,128'")
    assert swept(handed) == {"dataset.block_size": ["64", "128"]}


@pytest.mark.parametrize("sweep_flag", [False, True])
def test_an_axis_that_is_set_is_not_swept(sweep_flag):
    handed, *_ = check_command_line(["experiment=periodic", "replacement.period=64"], sweep_flag, "config")
    assert "replacement.period=64" in handed
    assert swept(handed) == {"replacement.position": ["model", "toroidal"]}
    handed, *_ = check_command_line(["experiment=depth", "replacement.depth=4"], sweep_flag, "config")
    assert swept(handed) == {}


def test_an_axis_with_several_values_is_swept_over_those():
    handed, sweeping = check("experiment=depth", "model=random", "replacement.depth=2,4")
    assert sweeping
    assert swept(handed) == {"replacement.depth": ["2", "4"]}


def test_another_axis_comes_on_top():
    handed, _ = check("experiment=init", "model=random", "seed=1,2")
    assert swept(handed) == {"replacement.init": ["copy", "random"], "seed": ["1", "2"]}


def test_a_swept_group_may_have_its_keys_set():
    handed, _ = check("experiment=domain", "dataset.val_size=3")
    assert swept(handed) == {"dataset": ["pydoc", "pycode"]}
    assert "dataset.val_size=choice(3)" in handed


def test_every_job_is_checked_before_the_first_starts():
    with pytest.raises(UserError) as caught:
        check("experiment=depth", "model=random", "model.hidden_size=16")
    assert [message.split(" ")[0].strip(":,") for message in caught.value.messages] == [
        "replacement.depth=4",
        "replacement.depth=8",
    ]
    with pytest.raises(UserError, match="depth=3") as caught:
        check("experiment=depth", "model=random", "replacement.depth=1,3")
    assert len(caught.value.messages) == 1


@pytest.mark.parametrize("line", ["size=small,full", "experiment=depth,init"])
def test_several_sizes_or_experiments_at_once_are_refused(line):
    others = [] if "experiment" in line else ["experiment=depth"]
    with pytest.raises(UserError, match=f"{line}: an experiment is a sweep of its own; run one at a time"):
        check_command_line([line, *others, "model=random"], True, "config")


@pytest.mark.parametrize("more", [[], ["size=small", "seed=3"]])
def test_an_unknown_experiment(more):
    with pytest.raises(UserError) as caught:
        check("experiment=dept", "model=random", *more)
    (message,) = caught.value.messages
    assert message.startswith("experiment=dept is no option; did you mean 'depth'? Allowed: adapter_directions, ")


def test_an_unknown_size():
    with pytest.raises(UserError, match="size=smal is no option; did you mean 'small'?"):
        check("experiment=depth", "model=random", "size=smal")


def test_an_experiment_runs_from_the_command_line(forked, here, small, tmp_path):
    """Two jobs, which share their control; the options of the command line go before those of the experiment."""
    own = ["replacement.depth=1,2", "replacement.transfer_steps=2", "trainer.max_steps=2"]
    done = forked("train.py", "experiment=depth", "size=small", *small(*own))
    assert done.returncode == 0, done.stderr
    results = [json.loads(file.read_text()) for file in (tmp_path / "outputs" / "runs").glob("*/result.json")]
    assert {result["status"] for result in results} == {"finished"}
    jobs = {r["config"]["replacement"].get("depth"): r for r in results}
    assert jobs.keys() == {1, 2, None}
    assert len(results) == 3
    assert jobs[None]["config"]["replacement"]["name"] == "standard"
    assert {jobs[depth]["config"]["trainer"]["max_steps"] for depth in (1, 2)} == {2}
    control = jobs[None]["metrics"]["val/ppl"]
    for depth in (1, 2):
        metrics = jobs[depth]["metrics"]
        assert metrics["val/ppl_ratio_control"] == pytest.approx(metrics["val/ppl"] / control, rel=1e-9)
    assert list(here.iterdir()) == []
