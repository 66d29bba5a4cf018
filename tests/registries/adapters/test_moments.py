"""What is held out, and that moments are those of all rows."""

import pytest
import torch

from registries.adapters.moments import Moments, gather


def pairs(batches, rows=20):
    draws = torch.Generator().manual_seed(0)
    return [(torch.randn(rows, 3, generator=draws), torch.randn(rows, 4, generator=draws)) for _ in range(batches)]


def same(found, batches):
    expected = Moments()
    for x, y in batches:
        expected.add(x, y)
    assert found.rows == expected.rows
    torch.testing.assert_close(found.xy, expected.xy)


def test_the_last_tenth_where_the_number_of_batches_is_known():
    batches = pairs(25)
    found = gather(batches)
    same(found.fitted, batches[:23])
    same(found.held_out, batches[23:])
    same(found.everything, batches)


def test_every_tenth_where_it_is_not():
    batches = pairs(25)
    found = gather(iter(batches))
    same(found.held_out, [batches[9], batches[19]])
    same(found.everything, batches)


@pytest.mark.parametrize("hide", [iter, list])
def test_the_last_tenth_of_the_rows_of_few_batches(hide):
    batches = pairs(3)
    found = gather(hide(batches))
    same(found.held_out, [(x[18:], y[18:]) for x, y in batches])
    same(found.everything, batches)


def test_what_is_gathered_is_handed_on():
    found = gather(pairs(3))
    assert gather(found) is found


def test_scatter_about_the_means_and_about_zero():
    batches = pairs(4)
    x, y = (torch.cat(parts).double() for parts in zip(*batches, strict=True))
    everything = gather(batches).everything
    centred = everything.about(*everything.means())
    torch.testing.assert_close(centred.xx, (x - x.mean(0)).T @ (x - x.mean(0)))
    torch.testing.assert_close(centred.xy, (x - x.mean(0)).T @ (y - y.mean(0)))
    torch.testing.assert_close(centred.yy, (y - y.mean(0)).square().sum())
    plain = everything.about(*everything.means(centre=False))
    torch.testing.assert_close(plain.xy, x.T @ y)
