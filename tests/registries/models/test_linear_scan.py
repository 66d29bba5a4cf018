import pytest
import torch

from registries.models.linear_scan import linear_scan


@pytest.mark.parametrize("length", [1, 2, 17])
def test_the_scan_has_the_gradients_of_a_loop(length):
    generator = torch.Generator().manual_seed(length)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    keep, add, first = drawn(2, length, 3), drawn(2, length, 3), drawn(2, 3)
    state, states = first, []
    for step in range(length):
        state = keep[:, step] * state + add[:, step]
        states.append(state)
    expected, scanned = torch.stack(states, 1), linear_scan(keep, add, first)
    assert scanned.allclose(expected)
    weights = torch.randn(2, length, 3, generator=generator, dtype=torch.float64)
    for gradient, own in zip(
        torch.autograd.grad(scanned, (keep, add, first), weights),
        torch.autograd.grad(expected, (keep, add, first), weights),
        strict=True,
    ):
        assert gradient.allclose(own)
