import pytest
import torch

from registries.models.fast_dropout import FastDropout, dropped


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_share_is_dropped_of_independent_entries(share):
    torch.manual_seed(0)
    kept = dropped((1000, 203), share).double()
    count = kept.numel()
    assert kept.mean() == pytest.approx(1 - share, abs=4 * (share * (1 - share) / count) ** 0.5)
    for lag in (1, 2, 3, 4, 203):  # four come from one number
        pairs = (kept.flatten()[:-lag] - kept.mean()) * (kept.flatten()[lag:] - kept.mean())
        assert pairs.mean().abs() < 4 * share * (1 - share) / count**0.5


def test_it_is_dropout():
    layer, states = FastDropout(0.25), torch.randn(100, 100, requires_grad=True)
    torch.manual_seed(0)
    output = layer(states)
    kept = output != 0
    assert kept.double().mean() == pytest.approx(0.75, abs=0.02)
    assert output[kept].allclose(states[kept] / 0.75)
    output.sum().backward()
    assert states.grad.equal(kept / 0.75)
    assert layer.eval()(states) is states
