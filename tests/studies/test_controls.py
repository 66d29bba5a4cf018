"""What the same training does without the replacement, and how a study is compared with it."""

import json

import pytest
import torch
import yaml

import train
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.config import read_config
from lightning_modules.training.stage_plan import recovery_plan
from registries.registry import UserError
from studies.controls import CONTROLS, RATIOS, control_config
from studies.run.ratios import ppl_ratio

TOROIDAL = (
    "replacement=toroidal",
    "replacement.layers=[1]",
    "replacement.depth=4",
    "replacement.transfer_steps=3",
    "replacement.transfer_lr=0.01",
    "optimizer.lr=1e-2",
)
BOTH = "controls=[original,standard]"
CHANGED = ("replacement", "recovery", "controls", "skip_finished", "resume")  # keys that a control has of its own


@pytest.fixture
def config(small):
    """The config of a study."""
    return lambda *more: read_config(train.compose(small(*TOROIDAL, *more)))


def without(cfg, *keys):
    return {key: value for key, value in cfg.items() if key not in keys}


NEXT_TOKEN = {"steps": None, "lr": None, "batch_size": None, "train": "replaced"}


class TestConfigs:
    def test_original_is_the_model_itself(self, config):
        cfg = config(BOTH)
        control = control_config(cfg, "original")
        assert control.plain["replacement"] == {
            "name": "standard",
            "layers": [1],
            "init": "copy",
            # The same for all studies, so that those that differ only in their transfer share the control.
            "transfer_steps": 0,
            "transfer_lr": 1.0,
            "transfer_batch_size": 1,
        }
        assert recovery_plan(control) == {"next_token": NEXT_TOKEN}
        assert without(control.plain, *CHANGED) == without(cfg.plain, *CHANGED)

    def test_standard_is_random_and_recovers_in_the_same_way(self, config):
        cfg = config(BOTH)
        control = control_config(cfg, "standard")
        own = {"init": "random", "transfer_steps": 3, "transfer_lr": 0.01, "transfer_batch_size": 2}
        assert control.plain["replacement"] == control_config(cfg, "original").plain["replacement"] | own
        assert list(recovery_plan(control)) == list(recovery_plan(cfg)) == ["transfer", "next_token"]
        assert recovery_plan(control)["next_token"] == NEXT_TOKEN
        assert without(control.plain, *CHANGED) == without(cfg.plain, *CHANGED)

    @pytest.mark.parametrize("control", CONTROLS)
    def test_controls_are_runs_that_others_may_share(self, config, control):
        given = control_config(config(BOTH, "resume=never"), control)
        assert (given.controls, given.skip_finished, given.resume) == ([], True, "auto")
        assert given == control_config(config("controls=[original]", "replacement.depth=2", "resume=auto"), control)

    @pytest.mark.parametrize("control", CONTROLS)
    def test_a_control_belongs_to_no_experiment(self, config, control):
        cfg = config(BOTH)
        assert control_config(read_config({**cfg.plain, "experiment": {"name": "depth"}}), control) == control_config(
            cfg, control
        )

    @pytest.mark.parametrize("control", CONTROLS)
    def test_the_config_of_the_study_stays_as_it_is(self, config, control):
        cfg = config("recovery=[transfer,kl]", BOTH)
        before = json.dumps(cfg.plain)
        control_config(cfg, control)
        assert json.dumps(cfg.plain) == before

    def test_stages_that_do_not_imitate_keep_their_keys_and_order(self, config):
        stages = "recovery=[transfer,lora,block_wise,next_token,kl]"
        own = ("recovery.next_token.steps=2", "recovery.next_token.lr=0.1", "recovery.lora.rank=3")
        cfg = config(stages, *own)
        control = control_config(cfg, "original")
        assert control.recovery == {name: cfg.recovery[name] for name in ("lora", "next_token")}
        assert list(control.recovery) == ["lora", "next_token"]
        assert control_config(cfg, "standard").recovery == cfg.recovery

    def test_thawed_models_are_controlled_by_thawed_models(self, config):
        cfg = config("model.freeze=false")
        assert recovery_plan(control_config(cfg, "original")) == {"next_token": NEXT_TOKEN | {"train": "model"}}

    @pytest.mark.parametrize("stages", ["none", "[transfer]", "[transfer,kl]", "[block_wise]"])
    def test_with_only_imitating_stages_nothing_is_left_to_train(self, config, stages):
        steps = ["trainer.max_steps=0"] if stages == "none" else []
        assert recovery_plan(control_config(config(f"recovery={stages}", *steps), "original")) == {}

    def test_lora_that_imitates_the_untouched_model_is_left_out_too(self, config):
        """Its gradients are rounding errors, which Adam makes into steps of full size."""
        cfg = config("recovery=[transfer,lora]", "recovery.lora.objective=kl")
        assert recovery_plan(control_config(cfg, "original")) == {}


def test_every_control_has_a_ratio_of_its_own():
    assert RATIOS.keys() == CONTROLS.keys()
    assert len(set(RATIOS.values())) == len(RATIOS)


@pytest.mark.parametrize("more", [(), ("model.freeze=false",)])
def test_controls_of_no_replacement_are_a_mistake(small, more):
    with pytest.raises(UserError, match=r"controls=\['original'\]: there is nothing to compare"):
        train.compose(small("controls=[original]", *more))


def test_a_control_that_does_not_exist(small):
    with pytest.raises(UserError, match="controls.*'original', 'standard' or 'scratch'"):
        train.compose(small(*TOROIDAL, "controls=[baseline]"))


# Runs


def folders(output_dir):
    """(component, init) -> folder; of several, the newest."""
    found = {}
    for folder in sorted((output_dir / "runs").iterdir()):
        replacement = yaml.safe_load((folder / "config.yaml").read_text())["replacement"]
        found[replacement["name"], replacement["init"]] = folder
    return found


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def documents_of(folder, prefix):
    return json.loads((folder / "documents.json").read_text())[prefix]


@pytest.fixture(scope="module")
def studied(small_in, cache_dir, tmp_path_factory):
    """A study with both controls: its output folder, overrides of more studies there, and the batches of each run."""
    output_dir, batches, step = tmp_path_factory.mktemp("controlled"), [], CausalLMModule.training_step

    def spy(self, batch, index):
        name = "toroidal" if hasattr(self.model.model.layers[1].self_attn.core, "fusion") else "standard"
        batches.append((name, self.stage_name, batch["input_ids"].clone()))
        return step(self, batch, index)

    def overrides(*more):
        return small_in(output_dir, *TOROIDAL, f"cache_dir={cache_dir}", *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAFTLAB_CACHE", str(cache_dir))
        patch.setattr(CausalLMModule, "training_step", spy)
        train.run(train.compose(overrides(BOTH)))
    return output_dir, overrides, batches


def test_a_study_with_two_controls_is_three_runs(studied):
    output_dir, _, _ = studied
    runs = folders(output_dir)
    assert runs.keys() == {("toroidal", "copy"), ("standard", "copy"), ("standard", "random")}
    assert len(list((output_dir / "runs").iterdir())) == 3
    results = {key: result_of(folder) for key, folder in runs.items()}
    assert {result["status"] for result in results.values()} == {"finished"}
    assert {key: list(result["stages"]) for key, result in results.items()} == {
        ("toroidal", "copy"): ["transfer", "next_token"],
        ("standard", "copy"): ["next_token"],
        ("standard", "random"): ["transfer", "next_token"],
    }
    assert results["toroidal", "copy"]["controls"] == {
        "original": runs["standard", "copy"].name,
        "standard": runs["standard", "random"].name,
    }


def test_the_ratios_are_those_of_the_recorded_documents(studied):
    runs = folders(studied[0])
    study, metrics = runs["toroidal", "copy"], result_of(runs["toroidal", "copy"])["metrics"]
    references = {
        "ppl_ratio_control": runs["standard", "copy"],
        "ppl_ratio_standard": runs["standard", "random"],
    }
    for prefix in ("val/", "test/"):
        for name, folder in references.items():
            expected = ppl_ratio(documents_of(study, prefix), documents_of(folder, prefix))
            recorded = [metrics[f"{prefix}{name}{end}"] for end in ("", "_low", "_high")]
            assert recorded == list(expected)
            assert recorded[1] < recorded[0] < recorded[2]
            theirs = result_of(folder)["metrics"]
            assert recorded[0] == pytest.approx(metrics[f"{prefix}ppl"] / theirs[f"{prefix}ppl"], rel=1e-9)
        untouched = documents_of(study, {"val/": "baseline/", "test/": "baseline/test/"}[prefix])
        expected = ppl_ratio(documents_of(study, prefix), untouched)
        assert [metrics[f"{prefix}ppl_ratio{end}"] for end in ("", "_low", "_high")] == list(expected)


def test_the_scores_of_the_controls_are_recorded_beside_the_study(studied):
    runs = folders(studied[0])
    metrics = result_of(runs["toroidal", "copy"])["metrics"]
    for control, init in (("original", "copy"), ("standard", "random")):
        theirs = result_of(runs["standard", init])["metrics"]
        for prefix in ("val/", "test/"):
            assert metrics[f"control/{control}/{prefix}loss"] == theirs[f"{prefix}loss"]
            assert metrics[f"control/{control}/{prefix}ppl"] == pytest.approx(theirs[f"{prefix}ppl"], rel=1e-12)
        assert theirs["baseline/loss"] == metrics["baseline/loss"]


def test_a_control_without_a_study_has_the_ratio_to_the_untouched_model_alone(studied):
    metrics = result_of(folders(studied[0])["standard", "copy"])["metrics"]
    assert {"val/ppl_ratio", "val/ppl_ratio_low", "test/ppl_ratio_high"} <= metrics.keys()
    assert not [name for name in metrics if "control" in name or "standard" in name]


def test_controls_see_the_same_blocks_in_the_same_order(studied):
    _, _, batches = studied
    order = ["next_token"] * 4 + (["transfer"] * 3 + ["next_token"] * 4) * 2  # original, standard, then the study
    assert [stage for _, stage, _ in batches] == order
    assert [name for name, _, _ in batches] == ["standard"] * 11 + ["toroidal"] * 7
    blocks = [ids for _, _, ids in batches]
    original, standard, study = blocks[:4], blocks[4:11], blocks[11:]
    assert all(map(torch.equal, standard, study))
    assert all(map(torch.equal, original, study[3:]))
    assert not torch.equal(study[3], study[4])


def test_a_second_study_finds_the_controls_done(studied):
    output_dir, overrides, _ = studied
    before, runs = folders(output_dir), set((output_dir / "runs").iterdir())
    result = train.run(train.compose(overrides(BOTH, "replacement.depth=2")))
    (new,) = set((output_dir / "runs").iterdir()) - runs
    assert result_of(new) == result
    assert result["config"]["replacement"]["depth"] == 2
    assert result["controls"]["original"] == before["standard", "copy"].name
    expected = ppl_ratio(documents_of(new, "val/"), documents_of(before["standard", "copy"], "val/"))
    assert result["metrics"]["val/ppl_ratio_control"] == expected.value


@pytest.mark.parametrize("override", ["optimizer.lr=2e-2", "replacement.layers=[0]"])
def test_other_training_needs_another_control(studied, override):
    output_dir, overrides, _ = studied
    before = {folder.name for folder in (output_dir / "runs").iterdir()}
    result = train.run(train.compose(overrides("controls=[original]", override)))
    assert result["controls"]["original"] not in before


def test_a_control_with_only_imitating_stages_trains_nothing(run, tmp_path):
    study = run(*TOROIDAL, "recovery=[transfer,kl]", "controls=[original]")
    control = result_of(folders(tmp_path / "outputs")["standard", "copy"])
    assert control["status"] == "finished"
    assert control.get("stages", {}) == {}
    assert control["metrics"]["params/trainable"] == 0
    assert control["metrics"]["val/loss"] == control["metrics"]["baseline/loss"]
    metrics = result_of(study)["metrics"]
    for end in ("", "_low", "_high"):
        assert metrics[f"val/ppl_ratio_control{end}"] == pytest.approx(metrics[f"val/ppl_ratio{end}"], rel=1e-9)


def test_an_interrupted_control_goes_on(run, monkeypatch, tmp_path):
    step = CausalLMModule.training_step

    def interrupted(self, *arguments):
        if self.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *arguments)

    own = (*TOROIDAL, "controls=[original]")
    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(CausalLMModule, "training_step", interrupted)
        run(*own)
    (control,) = (tmp_path / "outputs" / "runs").iterdir()
    assert result_of(control)["status"] == "killed"
    study = run(*own)
    assert result_of(control)["status"] == "finished"
    assert result_of(study)["controls"] == {"original": control.name}
    assert len(list((tmp_path / "outputs" / "runs").iterdir())) == 2
