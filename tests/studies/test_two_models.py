"""Studies of two models: what they score, record and leave behind, and what every option does."""

import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file

import score
import studies.crossing as crossing_module
import studies.two_models as two_models
import train
from data_modules import build_data_module
from lightning_modules import build_module, load_module
from lightning_modules.config import TrainerSettings, read_config
from lightning_modules.hidden_states.frozen_states import FrozenStates
from lightning_modules.training.trainer import evaluate
from lightning_modules.two_models.cross_model import CrossModelModule
from lightning_modules.two_models.sites import resolve_sites
from registries import UserError
from studies import study
from studies.config.compose import compose
from studies.run.curves import read_curves

# The target reads bytes, the source words: tiny_phi's states in a random model. Then the other way.
PAIR = ("adapter=ridge", "model@source=tiny_phi", "dataset.train_size=6", "dataset.block_size=64")


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def metrics_of(folder):
    return result_of(folder)["metrics"]


def bridges_of(folder):
    return load_file(folder / "checkpoints" / "bridges.safetensors")


@pytest.fixture(scope="module")
def finished(small_in, cache_dir, tmp_path_factory):
    """A finished run of a trained adapter with samples: what `train.run` returned, and its folder."""
    output_dir = tmp_path_factory.mktemp("finished")
    own = ["adapter=lora", "adapter.metrics_every=5", "samples.max_new_tokens=4", "samples.prompts=[One,Two three]"]
    result = train.run(train.compose(small_in(output_dir, *PAIR, *own, f"cache_dir={cache_dir}")))
    (folder,) = (output_dir / "runs").iterdir()
    return result, folder


def at_the_site(module, blocks):
    """The states of both models at the only site, block by block."""
    return [module.read(block[None])[module.states.sites[0]] for block in blocks]


class TestFinishedRun:
    def test_result_json_is_what_run_returns(self, finished):
        result, folder = finished
        assert result_of(folder) == result and result["status"] == "finished"
        assert folder.name.endswith("random-lora-from-tiny_phi")

    def test_scores_of_both_models_every_control_and_the_adapter(self, finished):
        metrics = finished[0]["metrics"]
        for prefix in ("baseline/", "target/", "source/", "val/", "test/", "source/test/", "target/test/"):
            assert {f"{prefix}loss", f"{prefix}ppl", f"{prefix}bpb"} <= set(metrics)
        names = {"mean", "random_orthogonal", "shuffled", "procrustes", "ridge"}
        assert {name.split("/")[1] for name in metrics if name.startswith("control/")} == names
        similar = {"r2", "cosine", "retrieval_at_1", "cka", "cka_chance", "cka_rows", "retrieval_rows", "kl"}
        for prefix in ("val/", "control/procrustes/val/", "control/ridge/val/", "test/"):
            assert {f"{prefix}{name}" for name in similar} <= set(metrics)
        assert "control/mean/val/cka" not in metrics  # equal rows are like nothing
        assert "control/identity/val/loss" not in metrics  # 256 channels into 64

    def test_the_share_of_the_gap_is_that_of_the_losses(self, finished):
        metrics = finished[0]["metrics"]
        for split in ("val/", "test/"):
            target = metrics[f"target/{split.removeprefix('val/')}loss"]
            floor = metrics[f"control/mean/{split}loss"]
            share = (floor - metrics[f"{split}loss"]) / (floor - target)
            assert metrics[f"{split}gap_closed"] == pytest.approx(share, rel=1e-6)
            assert metrics[f"{split}gap_closed_low"] <= share <= metrics[f"{split}gap_closed_high"]
        assert metrics["control/mean/val/gap_closed"] == 0

    def test_only_the_adapter_was_trained(self, finished):
        result, _ = finished
        expected = {"bridges.1.adapter.down.weight": [8, 256], "bridges.1.adapter.up.weight": [64, 8]}
        assert result["stages"]["adapter"]["trained"] == expected
        assert result["stages"]["adapter"]["steps"] == 3 * 6
        assert result["metrics"]["params/trainable"] == 8 * (256 + 64)

    def test_samples_of_all_conditions_after_every_epoch(self, finished):
        _, folder = finished
        for sample in json.loads((folder / "samples.json").read_text()):
            epochs = {f"source to target, epoch {epoch}" for epoch in (1, 2, 3)}
            assert set(sample) == {
                "prompt", "target", "source", "source to target", "target to source, by ridge", *epochs,
            }  # fmt: skip
            assert sample["source to target"] == sample["source to target, epoch 3"]

    def test_curves_of_the_loss_after_epochs_and_of_similarity_every_so_many_steps(self, finished):
        curves = read_curves(finished[1])
        assert [step for step, _ in curves["val/loss"]] == [5, 11, 17]
        assert [step for step, _ in curves["val/r2"]] == [4, 5, 9, 11, 14, 17]  # every fifth step, and every sixth
        assert "train/adapter/alignment" in curves

    def test_it_is_fitted_on_training_text_and_measured_on_what_was_held_out(self, finished):
        result, folder = finished
        module, metrics = load_module(folder), result["metrics"]
        data = build_data_module(result["config"], module.tokenizer)
        (site,) = module.states.sites
        with torch.no_grad():
            found = {
                split: [(module.translate(site, states), states) for states in at_the_site(module, data.blocks(split))]
                for split in ("train", "validation", "test")
            }
        target = torch.cat([states.target[states.paired] for _, states in found["train"]]).double()
        torch.testing.assert_close(module.bridges[site].mean.double(), target.mean(0), rtol=1e-4, atol=1e-6)
        for prefix, split in (("val/", "validation"), ("test/", "test")):
            true = torch.cat([states.target[states.paired] for _, states in found[split]]).double()
            translated = torch.cat([rows[states.paired] for rows, states in found[split]]).double()
            share = 1 - (translated - true).square().sum() / (true - true.mean(0)).square().sum()
            assert metrics[f"{prefix}r2"] == pytest.approx(share.item(), rel=1e-4, abs=1e-6)
            scores = evaluate(module, data.loader(split), TrainerSettings.read(result["config"]["trainer"]))
            assert metrics[f"{prefix}loss"] == pytest.approx(scores["loss"], rel=1e-6)

    def test_the_source_is_scored_by_its_own_tokens_and_their_bytes(self, finished):
        result, folder = finished
        module = load_module(folder)
        data, tokenizer = build_data_module(result["config"], module.tokenizer), module.source_tokenizer
        for prefix, split in (("source/", "validation"), ("source/test/", "test")):
            nats, tokens, size = 0.0, 0, 0
            for block in data.blocks(split):
                read = module.states.paired(block).tokens
                with torch.no_grad():
                    logits = module.source_model(input_ids=read[None], use_cache=False).logits[0].double()
                nats -= logits[:-1].log_softmax(-1).gather(1, read[1:, None]).sum().item()
                tokens += len(read) - 1
                size += sum(len(tokenizer.decode([token], skip_special_tokens=True).encode()) for token in read[1:])
            assert result["metrics"][f"{prefix}loss"] == pytest.approx(nats / tokens, rel=1e-5)
            assert result["metrics"][f"{prefix}bpb"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)

    def test_it_is_loaded_as_it_was_scored(self, finished):
        result, folder = finished
        module = load_module(folder)
        cfg = result["config"]
        data = build_data_module(cfg, module.tokenizer)
        module.measure(data.token_bytes)
        scores = evaluate(module, data.loader("validation"), TrainerSettings.read(cfg["trainer"]))
        assert scores["loss"] == pytest.approx(result["metrics"]["val/loss"], rel=1e-6)
        assert module.source_model.config.model_type == "phi"
        assert len(module.source_tokenizer) == 2048
        assert module.adapter.down.weight.shape == (8, 256)
        text = module.continue_texts(["One", "Two three"], 4)
        samples = json.loads((folder / "samples.json").read_text())
        assert text == [sample["source to target"] for sample in samples]

    def test_score_and_tasks_and_export(self, finished, forked, tmp_path):
        result, folder = finished
        lines = [f"run={folder}", "dataset=text", f"dataset.path={result['config']['dataset']['path']}"]
        lines += ["dataset.block_size=64", "dataset.val_size=4", "trainer.enable_progress_bar=false"]
        done = forked("score.py", *lines)
        assert json.loads(done.stdout)["loss"] == pytest.approx(result["metrics"]["val/loss"], rel=1e-6)
        done = forked("score.py", f"run={folder}", "tasks=[arc_easy]")
        assert done.returncode == 2 and "this run has two" in done.stderr
        from studies.tools.export import export

        with pytest.raises(UserError, match="this run has two"):
            export(folder, tmp_path / "exported")

    def test_it_is_scored_on_text_alone(self, finished):
        with pytest.raises(UserError, match="dataset 'periodic' is made of tokens"):
            score.score(compose([f"run={finished[1]}", "dataset=periodic", "trainer=cpu"], "score"))


def test_layers_are_paired_in_the_order_of_their_lists(small):
    lines = ["adapter=ridge", "model@source=tiny_phi", "model=random", "model.num_layers=4", "adapter.layers=[3,1]"]
    sites = lambda *more: resolve_sites(read_config(train.compose(small(*lines, *more))).adapter, 4, 4)  # noqa: E731
    assert sites("adapter.source_layers=[1,-1]") == [(1, 3), (4, 1)]
    assert sites("adapter.source_layers=[2,2]") == [(2, 3), (2, 1)]
    assert sites("adapter.source_layers=2-3") == [(2, 3), (3, 1)]
    assert sites() == [(3, 3), (1, 1)]


def test_another_seed_scores_only_what_is_drawn_anew(run, capsys):
    pair = (*PAIR, "model=tiny_phi")  # random weights would be others
    run(*pair)
    capsys.readouterr()
    run(*pair, "seed=1")
    assert re.findall(r"scoring the control (\w+)", capsys.readouterr().err) == ["random_orthogonal"]


def test_questions_that_cannot_be_asked_are_told_before_the_models_are_loaded(run, capsys):
    with pytest.raises(UserError, match="communication.choices=4 is more than the 1"):
        run(*PAIR, "communication.questions=2")
    assert "loading" not in capsys.readouterr().err


def test_closed_forms_are_scored_without_training(run):
    folder = run(*PAIR)
    metrics, result = metrics_of(folder), result_of(folder)
    assert result.get("stages", {}) == {} and metrics["params/trainable"] == 0
    assert metrics["val/loss"] == pytest.approx(metrics["control/ridge/val/loss"], rel=1e-6)
    assert metrics["val/r2"] > metrics["control/mean/val/r2"]
    load_module(folder)


def test_the_next_job_reads_no_text_again(run, monkeypatch, tmp_path):
    own = f"cache_dir={tmp_path / 'cache'}"
    run(*PAIR, own)
    computed, real = [], FrozenStates._compute
    monkeypatch.setattr(FrozenStates, "_compute", lambda self, row: computed.append(1) or real(self, row))
    monkeypatch.setattr(two_models, "build_bridges", lambda *_: computed.append(2))  # of a control
    run(*PAIR, own, "adapter=linear")
    assert not computed


def test_a_model_reads_itself_and_nothing_is_lost(run):
    folder = run("adapter=identity", "model@source=random", "dataset.train_size=3")
    metrics = metrics_of(folder)
    assert metrics["val/loss"] == metrics["baseline/loss"] and metrics["val/kl"] == pytest.approx(0, abs=1e-9)
    assert metrics["val/gap_closed"] == 1 and metrics["val/retrieval_at_1"] == 1
    assert "control/identity/val/loss" in metrics
    module = load_module(folder)
    assert module.source_model is module.original


EXCHANGED = (*PAIR[2:], "adapter=ridge", "model=tiny_phi", "model@source=random")


def test_the_other_direction(run_once):
    assert metrics_of(run_once(*EXCHANGED))["val/gap_closed"] > 0


def test_build_module_has_both_models(small):
    module = build_module(train.compose(small(*PAIR)))
    assert module.source_model.config.model_type == "phi" and isinstance(module, CrossModelModule)
    assert module.adapter.map.weight.shape == (256, 64)


DIFFERENT = [
    ("adapter.layers=[2]",),
    ("adapter.source_layers=[1]",),
    ("adapter.first_token=translate",),
    ("adapter.epochs=1",),
    ("adapter.lr=1e-3",),
    ("adapter.batch_size=2",),
    ("adapter.alignment_weight=0", "adapter.generation_weight=1"),
    ("adapter.generation_weight=1",),
    ("adapter.contrastive_weight=1",),
    ("seed=1",),
    ("source.path=SELF",),
]


UNSCORED = ("preflight=false", "dataset.val_size=1", "dataset.test_size=1")


@pytest.mark.parametrize("changes", DIFFERENT, ids=lambda changes: changes[-1])
def test_every_option_changes_what_is_learned(run, run_once, changes, request):
    if "SELF" in changes[-1]:
        changes = ("model@source=random", "source.hidden_size=32")
    plain_bridges = bridges_of(run_once(*PAIR, "adapter=affine"))
    found = bridges_of(run(*PAIR, "adapter=affine", *UNSCORED, *changes))
    name = next(iter(plain_bridges))
    same = found.keys() == plain_bridges.keys() and all(
        found[key].shape == plain_bridges[key].shape and found[key].equal(plain_bridges[key]) for key in found
    )
    assert not same, name


def test_what_leaves_scores_out_changes_nothing_that_is_learned(run, run_once):
    whole, unscored = (
        bridges_of(folder) for folder in (run_once(*PAIR, "adapter=affine"), run(*PAIR, "adapter=affine", *UNSCORED))
    )
    assert whole.keys() == unscored.keys() and all(whole[name].equal(unscored[name]) for name in whole)


@pytest.mark.parametrize(
    "changes", [("adapter.temperature=1.0",), ("adapter.negatives=3",), ("adapter.contrast=sequences",)]
)
def test_options_of_the_contrastive_objective(run, run_once, changes):
    contrastive = [*PAIR, *UNSCORED, "adapter=affine", "adapter.contrastive_weight=1", "adapter.batch_size=3"]
    one, other = (bridges_of(folder) for folder in (run_once(*contrastive), run(*contrastive, *changes)))
    assert not one["1.adapter.projection.weight"].equal(other["1.adapter.projection.weight"])


def test_several_layers_with_an_adapter_each_or_a_shared_one(run):
    layers = [*PAIR, "adapter=affine", "adapter.layers=[0,2]"]
    apart, shared = run(*layers), run(*layers, "adapter.shared=true")
    metrics = metrics_of(apart)
    mean = (metrics["val/layer_0/loss"] + metrics["val/layer_2/loss"]) / 2
    assert metrics["val/loss"] == pytest.approx(mean, rel=1e-6)
    assert {"val/layer_0/r2", "val/layer_2/r2"} <= set(metrics)
    assert metrics_of(shared)["params/trainable"] * 2 == metrics["params/trainable"]
    weights = bridges_of(shared)
    assert weights["0.adapter.projection.weight"].equal(weights["2.adapter.projection.weight"])
    load_module(shared)


def test_questions_about_what_the_source_has_read(run):
    lines = ["adapter=ridge", "model=tiny_phi", "model@source=tiny_phi", "dataset.train_size=4", "adapter.layers=[0,2]"]
    metrics = metrics_of(run(*lines, "communication.questions=8", "communication.choices=2"))
    assert metrics["communication/chance"] == 0.5
    for name in ("text", "nothing", "layer_0/states", "layer_2/states", "layer_0/shuffled", "layer_2/random"):
        value = metrics[f"communication/{name}/accuracy"]
        assert value * 8 == int(value * 8)
        assert metrics[f"communication/{name}/accuracy_low"] <= value <= metrics[f"communication/{name}/accuracy_high"]


def test_models_change_places(run, run_once):
    lines = [*PAIR[1:], "adapter=ridge"]
    folder = run(*lines, "adapter.exchange=true")
    config = result_of(folder)["config"]
    assert (config["model"]["name"], config["source"]["name"]) == ("tiny_phi", "random")
    assert not config["adapter"]["exchange"]
    assert folder.name.endswith("tiny_phi-ridge-from-random")
    assert metrics_of(folder)["val/loss"] == metrics_of(run_once(*EXCHANGED))["val/loss"]


def test_same_seed_same_result(run):
    one, other = (bridges_of(run(*PAIR, *UNSCORED, "adapter=mlp")) for _ in range(2))
    assert all(one[name].equal(other[name]) for name in one)


def test_a_run_that_was_stopped_ends_as_one_that_was_not(run, small, monkeypatch, tmp_path):
    lines = [*PAIR, "adapter=affine", "trainer.checkpoint_every_n_steps=1", f"cache_dir={tmp_path / 'cache'}"]
    whole = bridges_of(run(*lines))
    real, steps = crossing_module.similarities, []

    def stop(*arguments):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(crossing_module, "similarities", stop)
    lines.append(f"output_dir={tmp_path / 'stopped'}")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train.run(train.compose(small(*lines, "adapter.metrics_every=4")))
    monkeypatch.setattr(crossing_module, "similarities", real)
    train.run(train.compose(small(*lines, "adapter.metrics_every=4", "resume=auto")))
    (folder,) = (tmp_path / "stopped" / "runs").iterdir()
    resumed = bridges_of(folder)
    assert all(whole[name].equal(resumed[name]) for name in whole)


def test_early_stopping_ends_with_the_best_weights(run):
    lines = [*PAIR, "adapter=affine", "adapter.epochs=8", "adapter.lr=0.5", "trainer.early_stopping.patience=1"]
    folder = run(*lines, "optimizer.schedule=constant")
    losses = [value for _, value in read_curves(folder)["val/loss"]]
    assert len(losses) < 8
    assert metrics_of(folder)["val/loss"] == pytest.approx(min(losses), rel=1e-4)


def test_replacement_and_placement_apply_to_the_target(run):
    lines = [*PAIR, "adapter=affine", "replacement=toroidal", "replacement.transfer_steps=2", "trainer.max_steps=2"]
    folder = run(*lines, "model=tiny_phi", "placement=attention", "placement.rank=2")
    metrics, result = metrics_of(folder), result_of(folder)
    assert list(result["stages"]) == ["transfer", "next_token", "adapter"]
    assert metrics["target/loss"] != metrics["baseline/loss"]
    share = (metrics["control/mean/val/loss"] - metrics["val/loss"]) / (
        metrics["control/mean/val/loss"] - metrics["target/loss"]
    )
    assert metrics["val/gap_closed"] == pytest.approx(share, rel=1e-6)
    module = load_module(folder)
    data = build_data_module(result["config"], module.tokenizer)
    module.measure(data.token_bytes)
    scores = evaluate(module, data.loader("validation"), TrainerSettings.read(result["config"]["trainer"]))
    assert scores["loss"] == pytest.approx(metrics["val/loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["adapter=identity", "model@source=tiny_phi"], "one width"),
        (["adapter=ridge", "adapter.layers=[7]"], "adapter.layers=[7] names layer 7"),
        (["adapter=ridge", "adapter.source_layers=[9]"], "adapter.source_layers=[9] names layer 9"),
        (["adapter=ridge", "adapter.layers=[0,1]", "adapter.source_layers=[1]"], "names 1 layers and adapter.layers 2"),
        (["adapter=ridge", "model@source=none"], "reads a second model"),
        (["model@source=tiny_phi"], "read by no adapter"),
        (["adapter=ridge", "source=tiny_phi"], "model@source=tiny_phi"),
        (["adapter=ridge", "model@source=tiny"], "did you mean 'tiny_phi'"),
        (["adapter=ridge", "source.freeze=false"], "source.freeze=false"),
        (["adapter=ridge", "source.path=/nowhere"], "/nowhere"),
        (["adapter=linear", "adapter.alignment_weight=0"], "nothing to train the adapter for"),
        (["adapter=linear", "adapter.contrast=sequences", "adapter.contrastive_weight=1"], "adapter.batch_size to 2"),
        (
            [
                *("adapter=linear", "adapter.contrast=sequences", "adapter.contrastive_weight=1"),
                *("adapter.batch_size=3", "trainer=ddp"),
            ],
            "the blocks of a step (of each device): set adapter.batch_size to 4 or more",
        ),
        (["adapter=linear", "adapter.temperature=0"], "temperature=0"),
        (["adapter=lora", "adapter.rank=100"], "at most 64"),
        (["adapter=linaer"], "did you mean 'linear'"),
        (["adapter=ridge", "adapter.epochs=3"], "adapter.epochs"),
        (["model=none"], "a study needs a model"),
        (["communication.questions=5"], "for two models"),
        (["adapter=ridge", "communication.facts=0"], "facts=0"),
        (["adapter=ridge", "communication.choices=1"], "choices=1"),
        (["adapter=identity", "adapter.exchange=true"], "the source's is 64, the target's 256"),
    ],
)
def test_wrong_configs_are_told(small, lines, message):
    with pytest.raises(UserError) as error:
        train.compose(small(*lines))
    assert message in str(error.value)


@pytest.mark.parametrize("dataset", ["periodic", "alpaca"])
def test_data_that_another_tokenizer_cannot_read_is_told_before_models_are_loaded(run, dataset, monkeypatch, tmp_path):
    monkeypatch.setattr(study, "load_language_model", None)
    lines = [f"dataset={dataset}", "dataset.train_size=4", "dataset.block_size=64"]
    if dataset == "alpaca":
        records = [{"instruction": f"say {index}", "input": "", "output": f"it is {index}"} for index in range(60)]
        (tmp_path / "records.json").write_text(json.dumps(records))
        lines.append(f"++dataset.path={tmp_path / 'records.json'}")
    with pytest.raises(UserError, match="plain text"):
        run("adapter=ridge", "model@source=tiny_phi", *lines)


def test_a_component_of_a_plugin_needs_no_yaml(forked, here, small, tmp_path):
    (here / "halved.py").write_text(
        "from torch import nn\n"
        "from registries import ADAPTERS\n\n\n"
        '@ADAPTERS.register("halved")\n'
        "class Halved(nn.Module):\n"
        '    """A trained matrix, times a half."""\n\n'
        "    def __init__(self, source_width: int, target_width: int, factor: float = 0.5):\n"
        "        super().__init__()\n"
        "        self.factor, self.linear = factor, nn.Linear(source_width, target_width)\n\n"
        "    def fit(self, pairs):\n"
        '        """Nothing."""\n\n'
        "    def forward(self, states):\n"
        "        return self.factor * self.linear(states)\n"
    )
    lines = small("adapter=halved", "adapter.factor=0.25", "adapter.epochs=1", "plugins=[halved]", *PAIR[1:])
    done = forked("train.py", *lines, PYTHONPATH=str(here))
    assert done.returncode == 0, done.stderr
    assert (
        torch.tensor(result_of(next((tmp_path / "outputs" / "runs").iterdir()))["config"]["adapter"]["factor"]) == 0.25
    )
    assert read_config(train.compose(small("adapter=linear"))).source.name == "tiny_phi"


def test_no_other_text_is_no_control(run, capsys):
    """With one block of text, and one question, the next one is the same one."""
    own = ["model=tiny_phi", "model@source=tiny_phi", "dataset.val_size=1", "communication.questions=1"]
    metrics = metrics_of(run("adapter=ridge", "dataset.train_size=6", *own))
    assert not [name for name in metrics if "shuffled" in name]
    assert "control/mean/val/loss" in metrics and "communication/states/accuracy" in metrics
    told = capsys.readouterr().err
    assert "the control shuffled is left out" in told and "the condition shuffled is left out" in told
