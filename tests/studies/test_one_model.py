"""What a study does and leaves behind."""

import json
import math
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

import studies.steps as steps
import train
from data_modules import build_data_module
from lightning_modules import load_module
from lightning_modules.callbacks.checkpoint import StepCheckpoint
from lightning_modules.config import read_config
from lightning_modules.preflight import PreflightError
from lightning_modules.training.trainer import evaluate
from registries.registry import UserError
from studies import study
from studies.run.curves import read_curves

TOROIDAL = ("replacement=toroidal", "replacement.transfer_steps=6", "replacement.depth=4")
ONLY_NEXT_TOKEN = ("replacement=toroidal", "replacement.transfer_steps=0")


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def weights_of(folder):
    return load_file(folder / "checkpoints" / "trained.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def distance(one, other):
    return torch.cat([(one[name] - other[name]).flatten() for name in one]).norm().item()


@pytest.fixture(scope="module")
def finished(small_in, cache_dir, tmp_path_factory):
    """A finished run with every stage and with samples: what `train.run` returned, and its folder."""
    output_dir = tmp_path_factory.mktemp("finished")
    own = [*TOROIDAL, "samples.max_new_tokens=4", "samples.prompts=[One,Two three]", f"cache_dir={cache_dir}"]
    result = train.run(train.compose(small_in(output_dir, *own)))
    (folder,) = (output_dir / "runs").iterdir()
    return result, folder


class TestFinishedRun:
    def test_result_json_is_what_run_returns(self, finished):
        result, folder = finished
        assert result_of(folder) == result

    def test_account(self, finished):
        result, folder = finished
        assert result["status"] == "finished"
        assert "error" not in result
        assert result["config"] == yaml.safe_load((folder / "config.yaml").read_text())
        assert result["config"]["replacement"]["depth"] == 4
        assert len(result["fingerprint"]) == 16
        assert result["dataset"]["name"] == "text"
        assert len(result["dataset"]["sha256"]) == 64
        assert result["dataset"]["validation"]["tokens"] == 4 * 32
        assert {"graftlab", "python", "torch", "transformers", "lightning"} <= result["versions"].keys()
        assert result["mlflow_run_id"] is None
        assert result["layers"] == [0]

    def test_metrics(self, finished):
        metrics = finished[0]["metrics"]
        scores = {"loss", "ppl", "bpb", "accuracy"}
        for prefix in ("val/", "test/", "baseline/", "baseline/test/", "swap/", "transfer/"):
            assert {f"{prefix}{name}" for name in scores} <= metrics.keys()
            assert metrics[f"{prefix}ppl"] == pytest.approx(math.exp(metrics[f"{prefix}loss"]), rel=1e-12)
            assert 0 <= metrics[f"{prefix}accuracy"] <= 1
        for prefix in ("val/", "swap/", "transfer/"):
            ratio = metrics[f"{prefix}ppl"] / metrics["baseline/ppl"]
            assert metrics[f"{prefix}ppl_ratio"] == pytest.approx(ratio, rel=1e-9)
        assert metrics["test/ppl_ratio"] == pytest.approx(metrics["test/ppl"] / metrics["baseline/test/ppl"], rel=1e-9)
        for prefix in ("val/", "test/"):
            assert (
                metrics[f"{prefix}ppl_ratio_low"] < metrics[f"{prefix}ppl_ratio"] < metrics[f"{prefix}ppl_ratio_high"]
            )
        assert 0 < metrics["params/trainable"] < metrics["params/total"]
        for name in (
            "time/train_s",
            "time/eval_s",
            "throughput/train_tokens_per_s",
            "throughput/transfer_tokens_per_s",
            "throughput/eval_tokens_per_s",
        ):
            assert metrics[name] > 0
        assert 100 < metrics["memory/peak_mb"] < 100_000

    def test_bits_per_byte(self, finished):
        """Validation blocks hold ends of documents, which have no bytes: 4 x 31 targets, hardly fewer bytes."""
        metrics = finished[0]["metrics"]
        targets = 4 * 31
        scored_bytes = metrics["val/loss"] * targets / math.log(2) / metrics["val/bpb"]
        assert scored_bytes == pytest.approx(round(scored_bytes), abs=1e-6)
        assert targets - 10 < scored_bytes <= targets

    def test_baseline(self, finished):
        result, _ = finished
        assert result["baseline"]["loss"] == result["metrics"]["baseline/loss"]
        assert result["baseline"]["test/loss"] == result["metrics"]["baseline/test/loss"]

    def test_preflight(self, finished):
        preflight = finished[0]["preflight"]
        assert preflight.keys() == {"causality", "prefix", "padding", "cache"}
        assert all(check["passed"] for check in preflight.values())

    def test_stages_record_exactly_what_trained(self, finished):
        result, folder = finished
        weights = weights_of(folder)
        shapes = {name: list(tensor.shape) for name, tensor in weights.items()}
        assert result["stages"]["transfer"]["trained"] == result["stages"]["next_token"]["trained"] == shapes
        assert [stage["steps"] for stage in result["stages"].values()] == [6, 4]
        assert sum(tensor.numel() for tensor in weights.values()) == result["metrics"]["params/trainable"]
        assert all(name.startswith("model.layers.0.self_attn.") for name in weights)
        assert any(".core." in name for name in weights)

    def test_samples(self, finished):
        samples = json.loads((finished[1] / "samples.json").read_text())
        assert [sample["prompt"] for sample in samples] == ["One", "Two three"]
        assert all(isinstance(sample["before"], str) and isinstance(sample["after"], str) for sample in samples)

    def test_files(self, finished):
        _, folder = finished
        assert (folder / "figures" / "loss.png").read_bytes().startswith(b"\x89PNG")
        names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        assert names == {
            "result.json",
            "config.yaml",
            "documents.json",
            "samples.json",
            "curves.jsonl",
            "figures/loss.png",
            "checkpoints/trained.safetensors",
            "checkpoints/transfer/weights.safetensors",
            "checkpoints/next_token/weights.safetensors",
        }

    def test_curves_count_steps_through_all_stages(self, finished):
        curves = read_curves(finished[1])
        assert [step for step, _ in curves["train/transfer/loss"]] == list(range(6))
        assert [step for step, _ in curves["train/loss"]] == list(range(6, 10))
        assert len(curves["val/loss"]) == 3 + 2

    def test_load_module_scores_the_same(self, finished):
        result, folder = finished
        module = load_module(folder)
        weights = dict(module.model.named_parameters())
        assert all(torch.equal(weights[name], tensor) for name, tensor in weights_of(folder).items())
        assert module.surgery.layers == result["layers"]


def test_the_last_line_names_the_folder(run, capsys):
    folder = run()
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)


def test_with_nothing_to_train_the_model_is_scored(run, capsys):
    folder = run("samples.max_new_tokens=2")
    assert "nothing to train" in capsys.readouterr().err
    metrics = result_of(folder)["metrics"]
    for name in ("loss", "ppl", "bpb", "accuracy"):
        assert metrics[f"val/{name}"] == metrics[f"baseline/{name}"]
        assert metrics[f"test/{name}"] == metrics[f"baseline/test/{name}"]
    assert metrics["val/ppl_ratio"] == 1
    assert metrics["params/trainable"] == 0
    assert {"time/eval_s", "memory/peak_mb"} <= metrics.keys()
    assert not (folder / "checkpoints").exists()


def test_what_changes_nothing_changes_nothing(run):
    result = result_of(run("replacement=standard", "replacement.transfer_steps=0", "trainer.max_steps=0"))
    metrics = result["metrics"]
    assert metrics["swap/loss"] == pytest.approx(metrics["baseline/loss"], rel=1e-6)
    assert metrics["val/loss"] == metrics["baseline/loss"]
    assert result["preflight"]["identity"]["passed"]


def test_the_control_is_another_model_than_the_baseline(run):
    result = result_of(run("replacement=standard", "replacement.init=random", "replacement.transfer_steps=0"))
    assert result["metrics"]["swap/loss"] != pytest.approx(result["metrics"]["baseline/loss"], rel=1e-6)
    assert "identity" not in result["preflight"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_without_freezing_everything_trains(run, family):
    folder = run("model.freeze=false", f"model.family={family}")
    result = result_of(folder)
    assert result["metrics"]["params/trainable"] == result["metrics"]["params/total"]
    assert sum(tensor.numel() for tensor in weights_of(folder).values()) == result["metrics"]["params/total"]
    assert result["metrics"]["val/loss"] != result["metrics"]["baseline/loss"]


def test_transfer_brings_the_layer_back(run):
    own = ("replacement.init=random", "replacement.transfer_steps=40", "replacement.transfer_lr=0.01")
    curves = read_curves(run("replacement=standard", *own, "trainer.max_steps=0"))
    losses = [loss for _, loss in curves["train/transfer/loss"]]
    assert losses[-1] < 0.5 * losses[0]


def test_periodic_reports_the_first_period_and_the_rest(run):
    folder = run("dataset=periodic", "dataset.period=8", *ONLY_NEXT_TOKEN)
    metrics = result_of(folder)["metrics"]
    for prefix in ("val/", "baseline/", "swap/"):
        groups = 7 * metrics[f"{prefix}loss_first_period"] + 24 * metrics[f"{prefix}loss_later"]
        assert groups / 31 == pytest.approx(metrics[f"{prefix}loss"], rel=1e-6)
    assert "val/bpb" not in metrics


def test_a_frozen_bfloat16_model_is_trained_in_float32(run):
    folder = run("model.dtype=bfloat16", *TOROIDAL)
    assert {tensor.dtype for tensor in weights_of(folder).values()} == {torch.float32}
    assert result_of(folder)["metrics"]["val/loss"] > 0


# Pipelines of stages

PIPELINES = {
    "transfer, lora, next_token": ("recovery=[transfer,lora,next_token]", "recovery.lora.steps=3"),
    "block_wise, kl": ("recovery=[block_wise,kl]", "recovery.block_wise.inputs=recovered"),
}


@pytest.mark.parametrize("own", PIPELINES.values(), ids=PIPELINES)
def test_a_pipeline_is_recorded_stage_by_stage_and_loaded_as_it_was(run, small, own):
    folder = run(*TOROIDAL, "replacement.layers=all", *own)
    result, metrics = result_of(folder), result_of(folder)["metrics"]
    stages = list(result["config"]["recovery"])
    assert list(result["stages"]) == stages
    assert all(f"{name}/loss" in metrics for name in stages)
    assert metrics[f"{stages[-1]}/loss"] == metrics["val/loss"]
    errors = {name for name in metrics if "/error_layer_" in name}
    assert errors == {f"{stages[0]}/error_layer_{layer}" for layer in (0, 1)}
    assert all(metrics[name] > 0 for name in errors)
    curves = read_curves(folder)
    assert all(f"train/{name}/loss" in curves or name == "next_token" for name in stages)
    cfg = read_config(train.compose(small()))
    module = load_module(folder)
    data = build_data_module(cfg.plain, module.tokenizer)
    module.measure(data.token_bytes)
    assert evaluate(module, data.loader("validation"), cfg.trainer)["loss"] == metrics["val/loss"]


def test_lora_trains_its_additions_and_the_next_stage_what_it_is_for(run):
    stages = result_of(run(*TOROIDAL, *PIPELINES["transfer, lora, next_token"]))["stages"]
    assert stages["lora"]["steps"] == 3
    assert all("lora_" in name for name in stages["lora"]["trained"])
    assert not any("lora_" in name for name in stages["transfer"]["trained"])
    assert {name.replace(".base_layer", "") for name in stages["next_token"]["trained"] if "lora_" not in name} == set(
        stages["transfer"]["trained"]
    )


@pytest.mark.parametrize("recovery", ["recovery=[next_token]", "recovery=[transfer,kl]"])
@pytest.mark.parametrize("override", ["trainer.gradient_checkpointing=true", "trainer.loss_chunk_size=10"])
def test_what_saves_memory_changes_no_score(run, run_once, recovery, override):
    own = (*TOROIDAL, recovery, "trainer.max_steps=6", "optimizer.lr=1e-2", "dataset.batch_size=2")
    plainly, sparingly = (result_of(folder)["metrics"] for folder in (run_once(*own), run(*own, override)))
    assert plainly["val/loss"] != pytest.approx(plainly["baseline/loss"], rel=1e-4)  # something was trained
    losses = [name for name in plainly if name.endswith(("/loss", "/accuracy", "/bpb"))]
    assert {name: sparingly[name] for name in losses} == pytest.approx(
        {name: plainly[name] for name in losses}, rel=1e-5
    )


# Same seed, same result; and which options change it

UNSCORED = ("preflight=false", "dataset.val_size=1", "dataset.test_size=1", "trainer.val_check_interval=null")
REFERENCE = (*ONLY_NEXT_TOKEN, "replacement.dropout=0.1", "optimizer.weight_decay=0.1")


@pytest.fixture(scope="module")
def reference(small_in, cache_dir, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("reference")
    train.run(train.compose(small_in(output_dir, *REFERENCE, f"cache_dir={cache_dir}")))
    (folder,) = (output_dir / "runs").iterdir()
    return weights_of(folder)


@pytest.mark.parametrize(
    "override",
    [
        "seed=0",
        "trainer.val_check_interval=null",
        "trainer.log_every_n_steps=3",
        "trainer.checkpoint_every_n_steps=1",
        "trainer.enable_progress_bar=true",
        "trainer.profiler=simple",
        "trainer.detect_anomaly=true",
        "samples.max_new_tokens=3",
        "preflight=false",
        "dataset.num_workers=1",
        "dataset.val_size=2",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_bit_identical_whatever_else_the_run_does(run, reference, override):
    assert same(weights_of(run(*REFERENCE, override)), reference)


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "optimizer.lr=1e-3",
        "optimizer.weight_decay=0",
        "optimizer.beta1=0.5",
        "optimizer.beta2=0.5",
        "optimizer.eps=1e-3",
        "optimizer.schedule=linear",
        "optimizer.schedule=constant",
        "optimizer.warmup_steps=3",
        "trainer.max_steps=3",
        "trainer.accumulate_grad_batches=2",
        "trainer.gradient_clip_val=1e-6",
        "trainer.precision=bf16-mixed",
        "dataset.batch_size=2",
        "dataset.block_size=16",
        "dataset.train_size=2",
        "replacement.dropout=0.5",
        "replacement.depth=4",
        "replacement.lambda_distance=1",
        "replacement.fusion_mode=attention",
        "replacement.position=toroidal",
        "replacement.init=random",
        "replacement.transfer_steps=2",
    ],
)
def test_options_that_change_what_is_trained(run, reference, override):
    assert not same(weights_of(run(*REFERENCE, *UNSCORED, override)), reference)


def test_what_leaves_scores_out_changes_nothing_that_is_trained(run, reference):
    assert same(weights_of(run(*REFERENCE, *UNSCORED)), reference)


@pytest.mark.parametrize("override", ["transfer_lr=1e-2", "transfer_batch_size=1", "transfer_steps=5"])
def test_options_of_the_transfer(run, run_once, finished, override):
    transferred = load_file(finished[1] / "checkpoints" / "transfer" / "weights.safetensors")
    folder = run(*TOROIDAL, "trainer.max_steps=0", f"replacement.{override}")
    assert not same(weights_of(folder), transferred)
    assert same(weights_of(run_once(*TOROIDAL, "trainer.max_steps=0")), transferred)


def test_accumulating_batches_is_a_larger_batch(run):
    own = ("dataset.train_size=64", *ONLY_NEXT_TOKEN)
    large = weights_of(run(*own, "dataset.batch_size=4"))
    accumulated = weights_of(run(*own, "dataset.batch_size=2", "trainer.accumulate_grad_batches=2"))
    small = weights_of(run(*own, "dataset.batch_size=2"))
    assert distance(accumulated, large) < 1e-3 * distance(small, large)


def test_clipping_bounds_a_step(run):
    """Plain SGD at a constant rate moves weights by at most steps x rate x norm."""
    sgd = ("optimizer=sgd", "optimizer.momentum=0", "optimizer.schedule=constant", "optimizer.warmup_steps=0")
    own = (*sgd, "optimizer.lr=1.0", *ONLY_NEXT_TOKEN)
    start = weights_of(run(*own, "optimizer.lr=1e-30"))
    clipped = distance(weights_of(run(*own, "trainer.gradient_clip_val=0.001")), start)
    free = distance(weights_of(run(*own, "trainer.gradient_clip_val=null")), start)
    assert 0 < clipped <= 4 * 0.001 * 1.001
    assert free > 10 * clipped


def rates(folder):
    return [rate for _, rate in read_curves(folder)["train/lr"]]


def test_the_schedule_is_what_is_logged(run):
    own = ("optimizer.lr=0.01", "optimizer.warmup_steps=2", *ONLY_NEXT_TOKEN)
    assert rates(run(*own, "optimizer.schedule=constant")) == pytest.approx([0.005, 0.01, 0.01, 0.01])
    assert rates(run(*own, "optimizer.schedule=linear")) == pytest.approx([0.005, 0.01, 0.01, 0.005])


@pytest.mark.parametrize(("rule", "factor"), [("none", 1), ("sqrt", 2), ("linear", 4)])
def test_the_rate_is_scaled_to_the_blocks_of_a_step(run, rule, factor):
    own = ("optimizer.schedule=constant", "optimizer.warmup_steps=0", "optimizer.base_batch_size=2", *ONLY_NEXT_TOKEN)
    batches = ("dataset.batch_size=4", "trainer.accumulate_grad_batches=2", f"optimizer.scale_lr={rule}")
    assert rates(run(*own, *batches, "optimizer.lr=0.01", "trainer.max_steps=1")) == pytest.approx([0.01 * factor])


@pytest.mark.parametrize(("max_steps", "steps"), [(-1, 7), (5, 5), (100, 7)])
def test_epochs_and_steps_whichever_ends_first(run, max_steps, steps):
    """Two epochs of 7 blocks at 2 blocks per step."""
    own = ("dataset.train_size=7", "dataset.batch_size=2", "trainer.max_epochs=2", f"trainer.max_steps={max_steps}")
    assert len(rates(run(*own, *ONLY_NEXT_TOKEN))) == steps


def test_what_training_does_otherwise_than_its_keys_may_be_read_is_said(run, capsys):
    own = ("trainer.max_steps=-1", "trainer.max_epochs=1", "dataset.train_size=3", "dataset.batch_size=2")
    run("replacement=toroidal", "replacement.transfer_steps=0", *own, "trainer.early_stopping.patience=5")
    output = capsys.readouterr().err
    assert "next_token: 2 steps of 2 blocks are 1.33 passes over the 3 training blocks" in output
    assert "next_token: early stopping cannot end it" in output


def test_validations_come_at_their_interval(run):
    assert len(read_curves(run(*ONLY_NEXT_TOKEN, "trainer.val_check_interval=1"))["val/loss"]) == 4
    assert "val/loss" not in read_curves(run(*ONLY_NEXT_TOKEN, "trainer.val_check_interval=null"))
    assert "val/loss" not in read_curves(run(*ONLY_NEXT_TOKEN, "trainer.val_check_interval=100"))


def test_early_stopping_ends_with_the_best_weights(run):
    """One block is soon learnt by heart, and the loss on others rises."""
    overfit = ("model.freeze=false", "dataset.train_size=1", "optimizer.lr=0.03", "optimizer.schedule=constant")
    own = ("trainer.val_check_interval=1", "trainer.max_steps=30", "trainer.early_stopping.patience=2")
    folder = run(*overfit, *own)
    losses = [loss for _, loss in read_curves(folder)["val/loss"]]
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 2 < 30
    assert result_of(folder)["metrics"]["val/loss"] == pytest.approx(losses[best], rel=1e-9)


def test_a_fall_below_min_delta_is_no_improvement(run):
    own = ("trainer.val_check_interval=1", "trainer.max_steps=10", "trainer.early_stopping.patience=1")
    folder = run(*own, *ONLY_NEXT_TOKEN, "trainer.early_stopping.min_delta=5")
    assert len(read_curves(folder)["val/loss"]) == 2


def test_checkpoints_come_at_their_interval(run, monkeypatch):
    steps, save = [], StepCheckpoint._save

    def spy(self, trainer):
        steps.append(trainer.global_step)
        save(self, trainer)

    monkeypatch.setattr(StepCheckpoint, "_save", spy)
    run(*ONLY_NEXT_TOKEN, "trainer.max_steps=7", "trainer.checkpoint_every_n_steps=3")
    assert steps == [3, 6]


def test_samples_can_be_turned_off(run):
    for own in (["samples.max_new_tokens=0"], ["samples.max_new_tokens=4", "samples.prompts=[]"]):
        assert not (run(*ONLY_NEXT_TOKEN, *own) / "samples.json").exists()


def test_a_longer_sample_goes_on_where_the_shorter_ended(run):
    texts = []
    for tokens in (3, 9):
        folder = run("samples.prompts=[Hello]", f"samples.max_new_tokens={tokens}")
        texts.append(json.loads((folder / "samples.json").read_text())[0]["before"])
    assert texts[1].startswith(texts[0].rstrip("\ufffd"))
    assert len(texts[0]) < len(texts[1])


def test_preflight_can_be_turned_off(run):
    assert "preflight" not in result_of(run(*ONLY_NEXT_TOKEN, "preflight=false"))


def test_a_failed_preflight_ends_the_run(run, monkeypatch, tmp_path):
    broken = {"causality": {"difference": 0.5, "allowed": 1e-6, "passed": False}}
    monkeypatch.setattr(steps, "check", lambda *arguments: broken)
    with pytest.raises(PreflightError, match="causality: logits differ by 0.5"):
        run(*ONLY_NEXT_TOKEN)
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    result = result_of(folder)
    assert result["status"] == "failed"
    assert "causality" in result["error"]
    assert result["preflight"] == broken
    assert not (folder / "checkpoints").exists()


# The baseline is scored once


@pytest.fixture
def scored(monkeypatch):
    """Counts the scores that are computed."""
    calls, evaluate = [], study.evaluate

    def spy(*arguments):
        calls.append(arguments)
        return evaluate(*arguments)

    monkeypatch.setattr(study, "evaluate", spy)
    return calls


@pytest.fixture
def cache_of_a_run(run_once, tmp_path, tmp_path_factory):
    """A cache as a run with nothing to train leaves it."""
    shared = tmp_path_factory.getbasetemp() / "cache_of_a_run"
    run_once(f"cache_dir={shared}")
    return shutil.copytree(shared, tmp_path / "cache")


def test_a_second_run_does_not_score_the_baseline_again(run, scored, tmp_path):
    cache = f"cache_dir={tmp_path / 'cache'}"
    first = result_of(run(cache))
    assert len(scored) == 2
    second = result_of(run(cache, "seed=0"))
    assert len(scored) == 2
    assert second["baseline"] == first["baseline"]
    run(cache, *ONLY_NEXT_TOKEN)
    assert len(scored) == 2 + 3  # swap, val and test


@pytest.mark.parametrize("override", ["dataset.val_size=3", "model.num_layers=3", "model.dtype=bfloat16", "seed=1"])
def test_another_model_or_other_tokens_are_scored_anew(run, scored, cache_of_a_run, override):
    run(f"cache_dir={cache_of_a_run}", override)
    assert scored


def test_the_same_model_and_tokens_are_not(run, scored, cache_of_a_run):
    run(f"cache_dir={cache_of_a_run}")
    assert not scored


def test_a_baseline_has_the_losses_by_position_whoever_scored_it_first(run, cache_of_a_run):
    metrics = result_of(run(f"cache_dir={cache_of_a_run}", "dataset.loss_by_position=true"))["metrics"]
    assert metrics["baseline/loss_positions_0_31"] == pytest.approx(metrics["baseline/loss"])


@pytest.mark.parametrize("content", ["", '{"loss": 1.0, "ppl'])
def test_a_damaged_cached_score_is_computed_anew(run, scored, tmp_path, content):
    cache = f"cache_dir={tmp_path / 'cache'}"
    first = result_of(run(cache))
    for file in (tmp_path / "cache" / "scores").iterdir():
        file.write_text(content)
    again = result_of(run(cache))
    assert len(scored) == 4
    assert again["metrics"]["val/loss"] == first["metrics"]["val/loss"]


def test_a_rate_that_is_found_is_recorded_trained_with_and_not_sought_again(run, monkeypatch):
    from studies import stage_training

    sought = []
    monkeypatch.setattr(stage_training, "find_rate", lambda module, loader, trainer: sought.append(len(loader)) or 5e-3)
    folder = run(
        "model.freeze=false", "trainer.find_lr=true", "optimizer.schedule=constant", "optimizer.warmup_steps=0"
    )
    assert json.loads((folder / "result.json").read_text())["found"] == {"next_token": {"lr": 5e-3}}
    assert [rate for _, rate in read_curves(folder)["train/lr"]] == pytest.approx([5e-3] * 4)
    assert sought == [stage_training.TRIALS]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["trainer.find_batch_size=true"], "needs a GPU"),
        (["trainer.find_lr=true", "optimizer.scale_lr=sqrt"], "optimizer.scale_lr=none"),
        (
            ["trainer.find_lr=true", "replacement=toroidal", "recovery=[next_token]"],
            "of their own",
        ),
        (["trainer.precision=16-mixed"], "16-mixed needs a GPU"),
    ],
)
def test_searches_that_cannot_be_are_told(small, lines, message):
    with pytest.raises(UserError, match=message):
        train.compose(small("model.freeze=false", *lines))
