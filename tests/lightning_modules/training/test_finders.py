"""Lightning's searches, and that they leave the model as it was."""

import pytest
import torch

from lightning_modules.training import finders
from lightning_modules.training.finders import find_batch_size, find_rate


@pytest.fixture
def module(make_module, make_stage):
    module = make_module(optimizer={"lr": 1e-3})
    module.begin("next_token", make_stage(module, "next_token", steps=4, batch_size=2, train="model"))
    return module


def weights(module):
    return [parameter.detach().clone() for parameter in module.model.parameters()]


def test_a_rate_is_found_where_the_loss_falls(module, loader, blocks, trainer_options, monkeypatch):
    monkeypatch.setattr(finders, "TRIALS", 40)
    before = weights(module)
    rate = find_rate(module, loader(blocks, 2, 40), trainer_options)
    assert finders.LOWEST_RATE < rate < finders.HIGHEST_RATE
    assert all(one.equal(other) for one, other in zip(before, weights(module), strict=True))
    assert module.stage.lr != rate  # which the caller sets


def test_the_largest_batch_that_fits_is_found(module, loader, blocks, trainer_options, monkeypatch):
    before, workspace, sizes = weights(module), module.stage.workspace, []
    step = module.training_step

    def full_memory(batch, batch_idx):
        sizes.append(len(batch["input_ids"]))
        if sizes[-1] > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return step(batch, batch_idx)

    monkeypatch.setattr(module, "training_step", full_memory)
    assert find_batch_size(module, lambda size: loader(blocks, size, 3), trainer_options, 64) == 4
    assert sizes == [1] * 3 + [2] * 3 + [4] * 3 + [8]
    assert all(one.equal(other) for one, other in zip(before, weights(module), strict=True))
    assert module.stage.batch_size == 2
    assert module.stage.workspace is workspace
    assert not hasattr(module, "batch_size")


def test_no_batch_is_larger_than_the_training_data(module, loader, blocks, trainer_options):
    assert find_batch_size(module, lambda size: loader(blocks, size, 3), trainer_options, 8) == 8
