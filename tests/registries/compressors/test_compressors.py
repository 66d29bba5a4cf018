"""What every compressor does with texts of different lengths."""

import pytest
import torch

from registries import COMPRESSORS
from registries.compressors.pooling import stretches


def built(name, tokens=4):
    torch.manual_seed(0)
    return COMPRESSORS.build(name, source_width=6, target_width=10, tokens=tokens)


def batch(length=9, padding=3):
    states = torch.randn(2, length, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[1, length - padding :] = False
    return states, mask


each = pytest.mark.parametrize("name", COMPRESSORS.names())


@each
def test_as_many_soft_tokens_of_the_targets_width(name):
    assert built(name)(*batch()).shape == (2, 4, 10)


@each
def test_padding_tells_nothing(name):
    compressor, (states, mask) = built(name), batch()
    expected = compressor(states, mask)
    other = states.clone()
    other[1, 6:] = 100.0
    torch.testing.assert_close(compressor(other, mask), expected)
    torch.testing.assert_close(compressor(states[1:, :6], mask[1:, :6]), expected[1:])


@each
def test_every_state_matters_and_every_parameter_is_trained(name):
    compressor, (states, mask) = built(name), batch()
    states.requires_grad_(True)
    compressor(states, mask).square().sum().backward()
    assert (states.grad.abs().sum(-1) > 0).equal(mask)
    unused = [key for key, parameter in compressor.named_parameters() if not parameter.grad.abs().sum() > 1e-5]
    assert unused == (["weight.bias"] if name == "pooling" else [])  # a softmax does not see what is added to all


@each
def test_soft_tokens_differ_before_they_are_trained(name):
    """Also where the states have much in common, as those of language models do."""
    torch.manual_seed(0)
    compressor = COMPRESSORS.build(name, source_width=64, target_width=64, tokens=8)
    soft = compressor(torch.randn(1, 40, 64) + torch.randn(64), torch.ones(1, 40, dtype=torch.bool))
    assert soft.var(1, correction=0).mean() > 0.05 * soft.square().mean()


@each
def test_a_text_shorter_than_its_soft_tokens(name):
    states, mask = batch(3, 1)
    assert torch.isfinite(built(name, tokens=5)(states, mask)).all()


def test_stretches_cover_a_text_in_order_and_in_equal_parts():
    mask = torch.tensor([[True] * 10, [True] * 7 + [False] * 3])
    parts = stretches(mask, 4)
    assert parts.sum(1).equal(mask.long())
    assert parts.sum(2).tolist() == [[2, 3, 2, 3], [1, 2, 2, 2]]
    short = stretches(torch.tensor([[True, True, False]]), 4)
    assert (short.sum(2) == 1).all()
