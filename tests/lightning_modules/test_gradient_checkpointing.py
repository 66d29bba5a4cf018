"""Gradient checkpointing: less is kept for the backward pass, and nothing else changes."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_modules.training.trainer import evaluate, fit
from registries.architectures import architecture_of
from tests.rules import difference, disturb_cores, logits

FAMILIES = ["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"]
each_family = pytest.mark.parametrize("family", FAMILIES)
PARALLEL = ("gpt_neox", "phi")  # their MLP stands beside the attention: nothing that trains needs it again
SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.0, "schedule": "constant", "warmup_steps": 0}


@pytest.fixture
def train(make_module, make_stage, loader, blocks, trainer_options, tmp_path):
    """Train one stage of a module and count the calls of each layer's MLP (or attention). Returns both."""

    def train(
        checkpointing,
        family="llama",
        name="next_token",
        layers=(0, 1),
        num_layers=2,
        dropout=0.0,
        validate=False,
        dtype=torch.float32,
        **keys,
    ):
        options = {"depth": 2, "dropout": dropout}
        module = make_module(
            "toroidal",
            family,
            layers,
            options=options,
            num_layers=num_layers,
            dtype=dtype,
            optimizer=SGD,
            gradient_checkpointing=checkpointing,
        )
        disturb_cores(module.model)
        stage = make_stage(module, name, **{"steps": 1, **keys})
        module.begin(name, stage)
        before = {key: parameter.detach().clone() for key, parameter in module.trained_parameters().items()}
        calls, architecture = [], architecture_of(module.model.config.model_type)
        for layer, block in enumerate(module.model.get_submodule(architecture.blocks)):
            counted = block.get_submodule(architecture.attention if family in PARALLEL else "mlp")
            counted.register_forward_pre_hook(lambda *_, layer=layer: calls.append(layer))
        options = replace(trainer_options, val_check_interval=1 if validate else None)
        batches = loader(blocks, stage.batch_size, stage.steps)
        fit(module, batches, loader(blocks), options, Path(tempfile.mkdtemp(dir=tmp_path)))
        assert any(not parameter.equal(before[key]) for key, parameter in module.trained_parameters().items())
        return module, calls

    return train


def same_weights(one, other):
    for name, parameter in one.model.named_parameters():
        torch.testing.assert_close(parameter, other.model.get_parameter(name), rtol=1e-5, atol=1e-6)


def check(train, family, name, keys):
    plain, calls = train(False, family, name, **keys)
    checkpointed, again = train(True, family, name, **keys)
    same_weights(plain, checkpointed)
    assert calls == [0, 1]
    assert sorted(again) == [0, 0, 1, 1]


@each_family
@pytest.mark.parametrize("which", ["replaced", "model"])
def test_a_step_gives_the_same_weights_and_blocks_are_computed_twice(which, family, train):
    check(train, family, "next_token", {"train": which})


@pytest.mark.each_value
@pytest.mark.parametrize("family", ["gpt2", "phi", "gemma3"])
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("kl", {}),
        ("lora", {"roles": ["attention", "mlp.down"]}),
        ("block_wise", {"layers_per_group": 2}),
        ("block_wise", {"inputs": "recovered"}),
    ],
)
def test_so_it_is_in_every_stage_that_runs_through_blocks(name, keys, family, train):
    check(train, family, name, keys)


@each_family
def test_dropout_in_a_core_drops_the_same_twice(family, train):
    plain, _ = train(False, family, dropout=0.4)
    checkpointed, again = train(True, family, dropout=0.4)
    same_weights(plain, checkpointed)
    assert sorted(again) == [0, 0, 1, 1]
    other, _ = train(False, family, dropout=0.0)
    with pytest.raises(AssertionError):
        same_weights(plain, other)


@each_family
def test_layers_below_are_read_back_and_not_computed_twice(family, train):
    """One pass per block of text (2 of them) for the cache, and then those above alone."""
    plain, calls = train(False, family, layers=[2], num_layers=3, batch_size=2)
    checkpointed, again = train(True, family, layers=[2], num_layers=3, batch_size=2)
    same_weights(plain, checkpointed)
    assert calls == [0, 1, 0, 1, 2]
    assert again == [2, 2]  # the second run has found those of the first


def test_several_passes_and_steps(train):
    plain, calls = train(False, steps=3, batch_size=6)
    checkpointed, again = train(True, steps=3, batch_size=6)
    same_weights(plain, checkpointed)
    assert (len(calls), len(again)) == (3 * 2 * 2, 3 * 2 * 2 * 2)


def test_a_validation_in_between_changes_nothing(train):
    """And computes nothing twice, nor is checkpointing over afterwards."""
    alone, calls = train(True, steps=2)
    validated, more = train(True, steps=2, validate=True)
    same_weights(alone, validated)
    assert len(more) - len(calls) == 2 * 2 * 6  # two validations of six batches


@each_family
def test_what_is_frozen_stays_in_evaluation_mode(family, train):
    """A block itself must be in training mode to be checkpointed, and its parts must not, or they drop."""
    module, _ = train(True, family)
    modes = {name: part.training for name, part in module.model.named_modules()}
    architecture = architecture_of(module.model.config.model_type)
    for layer in range(2):
        assert modes[f"{architecture.blocks}.{layer}"]
        assert modes[architecture.attention_path(layer)]
        assert not any(
            training for name, training in modes.items() if name.startswith(f"{architecture.blocks}.{layer}.mlp")
        )
    assert not modes[architecture.blocks]


def test_a_score_after_training_is_that_of_the_weights(train, loader, blocks, trainer_options):
    plain, _ = train(False, dropout=0.4)
    checkpointed, _ = train(True, dropout=0.4)
    losses = [evaluate(module, loader(blocks), trainer_options)["loss"] for module in (plain, checkpointed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert difference(logits(checkpointed.model.eval(), blocks), logits(plain.model.eval(), blocks)) < 1e-5


def test_it_works_in_a_bf16_model(train):
    plain, calls = train(False, dtype=torch.bfloat16)
    checkpointed, again = train(True, dtype=torch.bfloat16)
    same_weights(plain, checkpointed)
    assert (len(calls), len(again)) == (2, 4)


def test_the_untouched_model_is_not_checkpointed(train):
    module, _ = train(True, name="kl")
    assert not any(getattr(part, "gradient_checkpointing", False) for part in module.original.modules())
    assert not any(part.training for part in module.original.modules())
