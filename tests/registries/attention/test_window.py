import pytest
import torch

from registries.architectures import AttentionShape


def seen(core, length):
    """Which positions each query sees, (length, length), from the weights: value j is the j-th unit vector."""
    value = torch.eye(length)[None, None]
    return core(torch.zeros_like(value), torch.zeros_like(value), value, None, 1.0, 0, 0)[0, 0] > 0


def window(make_core, length, **options):
    return make_core("window", AttentionShape(1, 1, length), **options)


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize(("size", "period"), [(0, 16), (1, 16), (3, 16), (4, 8), (5, 2048), (11, 2048), (40, 64)])
def test_a_query_sees_what_is_near_on_the_ring(size, period, backend, make_core):
    length = 24
    expected = [
        [j <= i and min((i - j) % period, (j - i) % period) <= size for j in range(length)] for i in range(length)
    ]
    assert seen(window(make_core, length, window=size, period=period, backend=backend), length).tolist() == expected


@pytest.mark.parametrize("size", [3, 4, 5, 7, 8, 100])
def test_a_window_wider_than_the_text_hides_nothing(size, make_core):
    """An earlier implementation inverted it where 2 window + 1 > length."""
    length = 8
    assert seen(window(make_core, length, window=size), length).equal(
        torch.ones(length, length, dtype=torch.bool).tril().triu(-size)
    )


@pytest.mark.parametrize("size", [8, 9, 100])
def test_half_the_ring_is_standard_attention(size, make_core, states):
    arguments = (*states(40), None, 0.25, 0, 0)
    core, standard = make_core("window", window=size, period=16), make_core("standard")
    torch.testing.assert_close(core(*arguments), standard(*arguments))


def test_the_long_way_round_is_seen(make_core):
    visible = seen(window(make_core, 20, window=1, period=16), 20)
    assert visible[15].nonzero().flatten().tolist() == [0, 14, 15]
    assert visible[16].nonzero().flatten().tolist() == [0, 1, 15, 16]
