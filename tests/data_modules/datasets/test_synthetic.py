"""The datasets that make their tokens."""

import math

import pytest
import torch

from data_modules import DATASETS
from registries.registry import UserError

SHAPE = {"count": 50, "block_size": 100, "vocab_size": 300}


@pytest.mark.parametrize("name", ["copy", "periodic", "sinusoidal"])
def test_blocks_are_the_same_again_and_others_in_every_split(name):
    dataset = DATASETS.build(name)
    train = dataset.tokens("train", seed=0, **SHAPE)
    assert train.shape == (50, 100)
    assert train.dtype == torch.int64
    assert 0 <= train.min() <= train.max() < 300
    assert dataset.tokens("train", seed=0, **SHAPE).equal(train)
    others = [
        dataset.tokens(split, seed=seed, **SHAPE) for split, seed in [("validation", 0), ("test", 0), ("train", 1)]
    ]
    rows = torch.cat([train, *others])
    assert len(rows.unique(dim=0)) == len(rows)


@pytest.mark.parametrize(("noise", "expected"), [(0.0, 1.0), (0.1, 0.97**2 * 0.98**2), (1.0, 0.7**2 * 0.8**2)])
def test_how_often_copying_one_period_back_is_right(noise, expected):
    blocks = DATASETS.build("periodic", period=32, noise=noise).tokens("train", 3000, 128, 50_257, seed=0)
    right = (blocks[:, 32:] == blocks[:, :-32]).double().mean()
    assert abs(right - expected) < 0.01


@pytest.mark.parametrize("period", [1, 7, 32, 127])
def test_the_groups_cover_every_target_once(period):
    groups = DATASETS.build("periodic", period=period).position_groups(128)
    targets = torch.arange(1, 128)  # the position of the token that target i is
    assert torch.cat([targets[group] for group in groups.values()]).equal(targets)
    assert (targets[groups["first_period"]] < period).all()
    assert (targets[groups["later"]] >= period).all()


def test_waves_use_all_levels_and_are_smooth():
    blocks = DATASETS.build("sinusoidal", levels=64).tokens("train", seed=0, **SHAPE)
    assert (blocks.amin(dim=1) == 0).all()
    assert (blocks.amax(dim=1) == 63).all()
    assert blocks.diff(dim=1).abs().max() < 32


def test_more_levels_than_tokens():
    with pytest.raises(UserError, match="dataset.levels=256 is more than the vocabulary of 100"):
        DATASETS.build("sinusoidal").tokens("train", 1, 10, 100, seed=0)


def test_checks():
    assert DATASETS.check("sinusoidal", {"min_frequency": 4.0}) == [
        "dataset 'sinusoidal': min_frequency=4.0 is above max_frequency=3.0: lower the one or raise the other"
    ]
    assert "never repeats" in DATASETS.check("periodic", {"period": 8}, block_size=8)[0]
    assert DATASETS.check("periodic", {"period": 8}, block_size=9) == []


def test_in_a_data_module(build, tokenizer):
    sizes = {"train_size": 6, "val_size": 4, "test_size": 2}
    module = build("periodic", block_size=40, **sizes)
    assert [len(module.blocks(split)) for split in ("train", "validation", "test", "all")] == [6, 4, 2, 12]
    assert module.position_groups() == {"first_period": slice(0, 31), "later": slice(31, 39)}
    assert module.describe()["train"] == {"blocks": 6, "tokens": 240, "scored": 234, "bytes": None}
    assert build("sinusoidal", block_size=40, **sizes).position_groups(40) == {}


def test_symbols_come_again_behind_a_gap():
    copied = DATASETS.build("copy", length=5, symbols=16)
    blocks = copied.tokens("train", seed=0, **SHAPE)
    assert blocks[:, :5].equal(blocks[:, -5:])
    assert (blocks[:, 5:-5] == 0).all()
    assert set(blocks[:, :5].flatten().tolist()) == set(range(1, 17))
    targets = blocks[:, 1:]
    groups = copied.position_groups(100)
    assert torch.cat([targets[:, group] for group in groups.values()], 1).equal(targets)
    assert targets[:, groups["copied"]].equal(blocks[:, -5:])
    assert targets[:, groups["symbols"]].equal(blocks[:, 1:5])


def test_the_entropy_is_that_of_a_model_that_knows_the_rule():
    assert DATASETS.build("copy", length=5, symbols=16).entropy(100, 300) == pytest.approx(4 * math.log(16) / 99)
    assert DATASETS.build("periodic", period=9, noise=0.0).entropy(100, 300) == pytest.approx(8 * math.log(300) / 99)
    assert DATASETS.build("periodic", noise=0.1).entropy(100, 300) is None
    assert DATASETS.build("sinusoidal").entropy(100, 300) is None


def test_what_does_not_fit_a_copy_is_told():
    with pytest.raises(UserError, match="at most 15"):
        DATASETS.build("copy", symbols=16).tokens("train", 1, 100, 16, seed=0)
    assert "at least 11" in DATASETS.check("copy", {"length": 5}, block_size=10)[0]
    assert DATASETS.check("copy", {"length": 5}, block_size=11) == []
