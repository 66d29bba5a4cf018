"""Studies of soft tokens: what they score, record and leave behind, and what every option does."""

import json

import pytest
from safetensors.torch import load_file

import score
import train
from data_modules import build_data_module
from lightning_modules import build_module, load_module
from lightning_modules.config import TrainerSettings
from lightning_modules.hidden_states.frozen_states import FrozenStates
from lightning_modules.soft_tokens.compression import CompressionModule
from lightning_modules.training.trainer import evaluate
from registries import UserError
from studies.config.compose import compose
from studies.report.sweep_table import group, summary_table
from studies.run.curves import read_curves
from studies.tools.export import export

SMALL = (
    "compressor=pooling",
    "model@source=tiny_phi",
    "dataset.train_size=6",
    "dataset.block_size=48",
    "compressor.context=32",
    "compressor.tokens=4",
    "compressor.steps=6",
)


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def metrics_of(folder):
    return result_of(folder)["metrics"]


def encoder_of(folder):
    return load_file(folder / "checkpoints" / "bridges.safetensors")


@pytest.fixture(scope="module")
def finished(small_in, cache_dir, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("finished")
    result = train.run(train.compose(small_in(output_dir, *SMALL, f"cache_dir={cache_dir}")))
    (folder,) = (output_dir / "runs").iterdir()
    return result, folder


def test_every_form_of_the_context_is_scored_on_the_same_tokens(finished):
    result, folder = finished
    metrics = result["metrics"]
    assert result["status"] == "finished" and folder.name.endswith("random-pooling-from-tiny_phi")
    documents = json.loads((folder / "documents.json").read_text())
    tokens = {key: [count for _, count in documents[key]] for key in documents if key.endswith("val/")}
    assert set(tokens) == {"val/", "control/text/val/", "control/truncated/val/", "control/nothing/val/"}
    assert all(counts == tokens["val/"] for counts in tokens.values())
    assert sum(tokens["val/"]) == 4 * (48 - 32 - 1)
    losses = [metrics[f"control/{form}/val/loss"] for form in ("text", "truncated", "nothing")]
    assert len({*losses, metrics["val/loss"]}) == 4
    assert metrics["baseline/loss"] == metrics["control/text/val/loss"]


def test_the_share_that_is_kept_is_that_of_the_losses(run):
    metrics = metrics_of(run(*SMALL, "model=tiny_phi", "compressor.steps=1"))
    for split in ("val/", "test/"):
        nothing, text = (metrics[f"control/{form}/{split}loss"] for form in ("nothing", "text"))
        share = (nothing - metrics[f"{split}loss"]) / (nothing - text)
        assert metrics[f"{split}gap_closed"] == pytest.approx(share, rel=1e-6)
    assert metrics["control/nothing/val/gap_closed"] == 0 and metrics["control/text/val/gap_closed"] == 1


def test_every_ratio_is_to_the_untouched_model_on_the_same_split(finished):
    metrics = finished[0]["metrics"]
    ratios = [name.removesuffix("_ratio") for name in metrics if name.endswith("ppl_ratio")]
    assert {"val/ppl", "test/ppl", "control/truncated/val/ppl", "control/truncated/test/ppl"} <= set(ratios)
    assert metrics["baseline/ppl"] != metrics["baseline/test/ppl"]
    for name in ratios:
        untouched = metrics["baseline/test/ppl" if "test" in name.split("/") else "baseline/ppl"]
        assert metrics[f"{name}_ratio"] == pytest.approx(metrics[name] / untouched, rel=1e-9), name


def test_there_is_no_share_of_what_a_text_is_not_worth(finished):
    """To a random model a text may be worth less than nothing."""
    metrics = finished[0]["metrics"]
    for split in ("val/", "test/"):
        nothing, text = (metrics[f"control/{form}/{split}loss"] for form in ("nothing", "text"))
        assert (f"{split}gap_closed" in metrics) == (nothing > text)


def test_the_ratio_is_counted(finished):
    metrics = finished[0]["metrics"]
    assert metrics["compression/ratio"] == 32 / 4
    assert metrics["compression/bytes_per_token"] == pytest.approx(32 / 4, rel=0.1)  # a byte is a token here


def test_a_sweep_shows_the_loss_after_every_form(finished):
    result, folder = finished
    (line,) = summary_table(group([(folder, result)]))
    for form, words in {"text": "text", "truncated": "last tokens", "nothing": "nothing"}.items():
        assert line[f"loss, {words}"] == result["metrics"][f"control/{form}/val/loss"]


def test_it_is_loaded_as_it_was_scored(finished):
    result, folder = finished
    module = load_module(folder)
    data = build_data_module(result["config"], module.tokenizer)
    module.measure(data.token_bytes)
    scores = evaluate(module, data.loader("validation"), TrainerSettings.read(result["config"]["trainer"]))
    assert scores["loss"] == pytest.approx(result["metrics"]["val/loss"], rel=1e-6)
    assert module.source_model.config.model_type == "phi"


def test_it_is_scored_where_there_is_a_continuation(finished):
    result, folder = finished
    lines = [f"run={folder}", "dataset=text", f"dataset.path={result['config']['dataset']['path']}", "trainer=cpu"]
    scored = score.score(compose([*lines, "dataset.block_size=48", "dataset.val_size=4"], "score"))
    assert scored["loss"] == pytest.approx(result["metrics"]["val/loss"], rel=1e-6)
    assert scored["tokens"] == 4 * (48 - 32 - 1)
    with pytest.raises(UserError, match="block_size=33 leaves no continuation of a context of 32 tokens: set it to 34"):
        score.score(compose([*lines, "dataset.block_size=33"], "score"))
    with pytest.raises(UserError, match="is made of tokens"):
        score.score(compose([lines[0], "dataset=periodic", "trainer=cpu"], "score"))


def test_what_is_of_one_model_is_refused(finished, tmp_path):
    with pytest.raises(UserError, match="continues no prompts"):
        score.score(compose([f"run={finished[1]}", "prompt=One"], "score"))
    with pytest.raises(UserError, match="this run has two"):
        export(finished[1], tmp_path / "exported")


def test_only_the_encoder_is_trained_and_training_helps(finished, run):
    result, _ = finished
    assert all(name.startswith("compressor.encoder.") for name in result["stages"]["compressor"]["trained"])
    none = run(*SMALL, "compressor.steps=0")
    assert "compressor" not in result_of(none).get("stages", {})
    assert result_of(none)["metrics"]["params/trainable"] == 0
    more = run(*SMALL, "compressor.steps=60", "compressor.lr=1e-2")
    losses = [value for _, value in read_curves(more)["train/compressor/loss"]]
    assert sum(losses[-6:]) < sum(losses[:6])


@pytest.mark.parametrize(
    "change",
    [
        "compressor.tokens=2",
        "compressor.context=16",
        "compressor.source_layer=1",
        "compressor.steps=3",
        "compressor.lr=1e-2",
        "compressor.batch_size=2",
        "seed=1",
    ],
)
def test_every_option_changes_what_is_learned(finished, run, change):
    weight = "encoder.outward.weight"
    assert not encoder_of(finished[1])[weight].equal(encoder_of(run(*SMALL, change))[weight])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("cross_attention", "compressor.width=32"),
        ("cross_attention", "compressor.heads=2"),
        ("convolution", "compressor.kernel=3"),
        ("convolution", "compressor.width=32"),
    ],
)
def test_options_of_the_components(run, run_once, name, change):
    own = (*SMALL, f"compressor={name}")
    one, other = (result_of(folder) for folder in (run_once(*own), run(*own, change)))
    assert one["metrics"]["val/loss"] != other["metrics"]["val/loss"]


def test_the_next_job_reads_no_context_again(run, monkeypatch, tmp_path):
    own = f"cache_dir={tmp_path / 'cache'}"
    run(*SMALL, own)
    computed, real = [], FrozenStates._compute
    monkeypatch.setattr(FrozenStates, "_compute", lambda self, row: computed.append(1) or real(self, row))
    run(*SMALL, own, "compressor=convolution")
    assert not computed


def test_the_target_may_read_its_own_contexts(run):
    module = load_module(run(*SMALL, "model@source=random"))
    assert module.source_model is module.original


def test_replacement_applies_to_the_target(run):
    lines = ["replacement=toroidal", "replacement.transfer_steps=2", "trainer.max_steps=2"]
    folder = run(*SMALL, *lines)
    metrics = result_of(folder)["metrics"]
    assert list(result_of(folder)["stages"]) == ["transfer", "next_token", "compressor"]
    assert metrics["control/text/val/loss"] != metrics["baseline/loss"]
    load_module(folder)


def test_build_module_has_both_models(small):
    module = build_module(train.compose(small(*SMALL)))
    assert module.source_model.config.model_type == "phi" and isinstance(module, CompressionModule)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["compressor.context=47"], "leaves no continuation"),
        (["compressor.tokens=0"], "tokens=0"),
        (["compressor.tokens=33"], "tokens=33 are more than the 32 tokens of compressor.context"),
        (["compressor.source_layer=first:2"], "names several layers"),
        (["compressor.source_layer=9"], "compressor.source_layers=9 names layer 9"),
        (["compressor=cross_attention", "compressor.heads=3"], "heads=3 does not divide"),
        (["compressor=convolution", "compressor.kernel=4"], "kernel=4 is even"),
        (["model@source=none"], "reads a second model"),
        (["adapter=ridge"], "studies of their own"),
        (["compressor=poling"], "did you mean 'pooling'"),
    ],
)
def test_wrong_configs_are_told(small, lines, message):
    with pytest.raises(UserError) as error:
        train.compose(small(*SMALL, *lines))
    assert message in str(error.value)


def test_data_that_another_tokenizer_cannot_read(run):
    with pytest.raises(UserError, match="plain text"):
        run(*SMALL, "dataset=periodic")
