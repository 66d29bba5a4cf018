"""Unbiased linear CKA against its definition, and its invariances."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.metrics import LinearCKA


def rows(count, width, seed=0, mean=0.0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + mean


def cka(x, y, batch=None):
    metric = LinearCKA()
    for part in zip(x.split(batch or len(x)), y.split(batch or len(y)), strict=True):
        metric.update(*part)
    return metric.compute().item()


def by_definition(x, y):
    """From U-centred kernel matrices (Szekely and Rizzo, 2014), of which HSIC is the mean product off the diagonal."""

    def centred(z):
        kernel = z @ z.T
        kernel.fill_diagonal_(0)
        n = len(z)
        sums = kernel.sum(0)
        kernel = kernel - sums[:, None] / (n - 2) - sums[None] / (n - 2) + kernel.sum() / ((n - 1) * (n - 2))
        return kernel.fill_diagonal_(0)

    k, m = centred(x), centred(y)
    return ((k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt()).item()


@given(n=st.integers(4, 40), dx=st.integers(1, 30), dy=st.integers(1, 30), mean=st.floats(-10, 10))
@settings(max_examples=40, deadline=None)
def test_equals_the_definition_by_kernel_matrices(n, dx, dy, mean):
    x = rows(n, dx, 1, mean)
    y = rows(n, dy, 2, -mean) + x[:, :1]
    assert cka(x, y) == pytest.approx(by_definition(x, y), abs=1e-8)


def test_equals_the_definition_on_many_rows():
    x = rows(500, 64, 1, 5)
    y = x @ rows(64, 48, 2) + rows(500, 48, 3, -2)
    assert cka(x, y) == pytest.approx(by_definition(x, y), abs=1e-8)
    assert cka(x.float(), y.float()) == pytest.approx(by_definition(x.float().double(), y.float().double()), abs=1e-8)


def test_one_for_itself_and_invariant_to_rotation_scale_and_shift():
    x = rows(200, 32)
    y = x @ rows(32, 16, 1) + rows(200, 16, 2)
    rotation = torch.linalg.qr(rows(32, 32, 3)).Q
    assert cka(x, x) == pytest.approx(1, abs=1e-12)
    assert cka(7 * x @ rotation + 300, y) == pytest.approx(cka(x, y), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_near_zero_for_independent_data_with_a_mean(seed):
    assert abs(cka(rows(500, 512, seed, 2.0), rows(500, 512, seed + 10, 2.0))) < 0.02


def test_zero_on_average_for_few_rows():
    values = [cka(rows(8, 20, seed), rows(8, 20, seed + 1000)) for seed in range(300)]
    assert abs(sum(values) / len(values)) < 0.05


def test_batches_add_up():
    x, y = rows(100, 6, 1), rows(100, 9, 2)
    assert cka(x, y) == pytest.approx(cka(x, y, batch=7), abs=1e-12)


def test_too_few_rows_wrong_pairs_and_values_that_are_not_finite():
    with pytest.raises(ValueError, match="4 rows at least, and there are 3"):
        cka(rows(3, 5), rows(3, 5, 1))
    with pytest.raises(ValueError, match="4 rows at least, and there are 0"):
        LinearCKA().compute()
    with pytest.raises(ValueError, match="x has 3 rows and y has 4"):
        LinearCKA().update(rows(3, 5), rows(4, 5))
    with pytest.raises(ValueError, match="not finite"):
        cka(rows(5, 5) / 0, rows(5, 5))
