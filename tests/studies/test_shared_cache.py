"""What other runs left in the cache changes no number of a run: it is used where it is right, and nowhere else."""

import importlib
import json
import sys

import pytest

from registries import ATTENTION
from studies.run.code_version import _meaning

TWO = ("model@source=random", "dataset.train_size=4", "dataset.block_size=48")
STUDIES = {
    "replacement": ["replacement=toroidal", "replacement.layers=[1]", "replacement.transfer_steps=2"],
    "two models": ["adapter=linear", "adapter.epochs=1", "adapter.generation_weight=1", *TWO],
    "soft tokens": ["compressor=pooling", "compressor.context=16", "compressor.tokens=2", "compressor.steps=2", *TWO],
}
CHANGES = {
    "precision": ["trainer.precision=bf16-mixed"],
    "position groups": ["dataset.loss_by_position=true"],
    "batches": ["dataset.batch_size=2", "trainer.precision=bf16-mixed"],
}
TAKEN = ("time/", "memory/", "throughput/")


def numbers(folder):
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    return {name: value for name, value in metrics.items() if not name.startswith(TAKEN)}


@pytest.mark.each_value
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("study", STUDIES)
def test_a_run_after_others_is_the_run_by_itself(run, study, change, tmp_path):
    after, alone = (f"cache_dir={tmp_path / name}" for name in ("after", "alone"))
    before = numbers(run(*STUDIES[study], after))
    changed = numbers(run(*STUDIES[study], *CHANGES[change], after))
    assert changed == numbers(run(*STUDIES[study], *CHANGES[change], alone))
    assert changed != before


@pytest.mark.parametrize("study", STUDIES)
def test_a_run_without_a_cache_is_the_run_with_one(run, study, tmp_path):
    mixed = [*STUDIES[study], "trainer.precision=bf16-mixed"]
    kept, computed = (
        run(*mixed, f"cache_dir={tmp_path / name}", f"activations.cache={name}") for name in ("true", "false")
    )
    assert numbers(kept) == numbers(computed)


CORE = """
import torch
from torch import nn
from registries import ATTENTION


@ATTENTION.register("scaled_mean")
class ScaledMean(nn.Module):
    own_positions = keeps_function = False

    def __init__(self, shape):
        super().__init__()
        self.groups = shape.num_heads // shape.num_kv_heads

    def forward(self, query, key, value, mask, scaling, query_start, key_start):
        means = value.cumsum(2) / torch.arange(1, value.shape[2] + 1)[:, None]
        return FACTOR * means.repeat_interleave(self.groups, 1)[:, :, -query.shape[2] :]
"""


def test_an_edited_plugin_is_another_run(run, tmp_path, monkeypatch):
    """Its core lies below the layer that trains, so that what is kept of the layers below depends on it."""
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "scaled_mean_core.py"
    own = [
        "plugins=[scaled_mean_core]",
        "replacement=scaled_mean",
        "replacement.layers=[0]",
        "replacement.transfer_steps=0",
        "recovery=[lora]",
        "recovery.lora.layers=[1]",
        "recovery.lora.steps=2",
        "preflight=false",
        "skip_finished=true",
    ]
    file.write_text(CORE.replace("FACTOR", "1.0"))
    try:
        first = run(*own, f"cache_dir={tmp_path / 'after'}")
        file.write_text(CORE.replace("FACTOR", "0.25"))
        importlib.reload(sys.modules["scaled_mean_core"])
        _meaning.cache_clear()  # as in a new process
        second = run(*own, f"cache_dir={tmp_path / 'after'}")
        assert second != first
        alone = run(*own, f"cache_dir={tmp_path / 'alone'}", "skip_finished=false")
        assert numbers(second) == numbers(alone) != numbers(first)
    finally:
        ATTENTION._components.pop("scaled_mean", None)
        sys.modules.pop("scaled_mean_core", None)


def test_a_cached_score_of_which_a_digit_changed_is_not_believed(run, tmp_path):
    own = ["replacement=toroidal", "replacement.transfer_steps=2", f"cache_dir={tmp_path / 'cache'}"]
    first = numbers(run(*own))
    for file in (tmp_path / "cache" / "scores").iterdir():
        file.write_text(file.read_text().replace("5", "6", 1))
    assert numbers(run(*own)) == first
