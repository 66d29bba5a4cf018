import math
from dataclasses import dataclass

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from registries.attention.backends import Scoring, attend
from registries.attention.toroidal import ToroidalDistance
from registries.attention.window import CircularWindow

HEADS, KV_HEADS, PERIOD = 4, 2, 18  # a period that divides no chunk: what is off by a chunk then shows


@dataclass(frozen=True)
class OneWay:
    """A bias without any symmetry: it tells query slice from key slice, and forwards from backwards."""

    depth: int

    def __call__(self, offsets):
        query, key = torch.arange(self.depth)[:, None], torch.arange(self.depth)[None]
        return torch.sin(0.3 * offsets[:, None, None] + 2.0 * query - 0.7 * key)


BIASES = {
    "depth 1": (1, ToroidalDistance(2.0, PERIOD, 1)),
    "depth 2": (2, ToroidalDistance(2.0, PERIOD, 2)),
    "depth 4": (4, ToroidalDistance(2.0, PERIOD, 4)),
    "one way": (2, OneWay(2)),
    "window": (1, CircularWindow(3, PERIOD)),
}

# queries, keys, position of the first query, position of the first key
PLACES = {
    "one": (1, 1, 0, 0),
    "odd": (33, 33, 0, 0),
    "several chunks": (271, 271, 0, 0),
    "cached": (7, 40, 33, 0),
    "cached, old keys dropped": (5, 20, 50, 35),
    "one query": (1, 40, 39, 0),
}


def inputs(depth, queries, keys, width=16, batch=2):
    torch.manual_seed(0)
    query = torch.randn(batch, HEADS, queries * depth, width // depth, requires_grad=True)
    key, value = (torch.randn(batch, KV_HEADS, keys * depth, width // depth, requires_grad=True) for _ in range(2))
    return query, key, value


def masks(queries, keys, start):
    """No mask, left padding in one of two rows, the same mask for all rows, and a mask without any order."""
    causal = torch.ones(queries, keys, dtype=torch.bool).tril(start)
    padded = causal.expand(2, 1, -1, -1).clone()
    padded[1, :, :, : min(2, start)] = False
    generator = torch.Generator().manual_seed(1)
    anything = torch.rand(2, 1, queries, keys, generator=generator) < 0.5
    anything |= torch.eye(queries, keys, dtype=torch.bool).roll(start, dims=1)
    return {"none": None, "padded": padded, "shared": causal[None, None], "any order": anything}


def case(bias, place, mask):
    """How scores are made, and query, key and value."""
    (depth, bias), (queries, keys, query_start, key_start) = BIASES[bias], PLACES[place]
    scoring = Scoring(
        mask=masks(queries, keys, query_start - key_start)[mask],
        bias=bias,
        scaling=0.4,
        depth=depth,
        query_start=query_start,
        key_start=key_start,
    )
    return scoring, inputs(depth, queries, keys)


@pytest.mark.pairwise
@pytest.mark.parametrize("mask", ["none", "padded", "shared", "any order"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("bias", BIASES)
def test_sdpa_agrees_with_the_reference(bias, place, mask):
    scoring, tensors = case(bias, place, mask)
    results = {}
    for backend in ("reference", "sdpa", "auto"):
        output = attend(*tensors, scoring, backend=backend)
        torch.manual_seed(2)
        results[backend] = output, *torch.autograd.grad((output * torch.randn_like(output)).sum(), tensors)
    for backend in ("sdpa", "auto"):
        torch.testing.assert_close(results[backend], results["reference"], rtol=1e-4, atol=1e-5)


@pytest.mark.each_value
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("mask", ["none", "padded", "any order"])
@pytest.mark.parametrize("place", ["odd", "cached", "cached, old keys dropped", "one query"])
@pytest.mark.parametrize("bias", BIASES)
def test_flex_agrees_with_the_reference_going_forward(bias, place, mask):
    """Uncompiled: flex attention trains on CUDA alone."""
    scoring, tensors = case(bias, place, mask)
    tensors = [tensor.detach() for tensor in tensors]
    torch.testing.assert_close(
        attend(*tensors, scoring, backend="flex"),
        attend(*tensors, scoring, backend="reference"),
        rtol=1e-4,
        atol=1e-5,
    )


def on_a_torus(offset, k, l):  # noqa: E741
    """1.5 times the distance on a ring of 4 positions and across 2 slices."""
    around = offset % 4
    return -1.5 * (min(around, 4 - around) / 4 + abs(k - l) / 2)


def one_way(offset, k, l):  # noqa: E741
    return math.sin(0.3 * offset + 2.0 * k - 0.7 * l)


@pytest.mark.parametrize(
    ("bias", "formula"), [(ToroidalDistance(1.5, 4, 2), on_a_torus), (OneWay(2), one_way)], ids=["torus", "one way"]
)
@pytest.mark.parametrize("key_start", [0, 3])
def test_the_reference_is_the_definition(key_start, bias, formula):
    """Against loops over every pair of slices, in Python's own arithmetic."""
    depth, positions, scaling = 2, 5, 0.3
    query, key, value = (tensor.detach() for tensor in inputs(depth, positions, positions + 2, width=8, batch=1))
    query_start = key_start + 2
    scoring = Scoring(None, bias, scaling, query_start, key_start, depth)
    output = attend(query, key, value, scoring, backend="reference")
    for head in range(HEADS):
        keys, values = key[0, head // 2].tolist(), value[0, head // 2].tolist()  # two heads share one
        for entry, channels in enumerate(query[0, head].tolist()):
            i, k = query_start + entry // depth, entry % depth
            exponentials = []
            for other, other_channels in enumerate(keys):
                j, l = key_start + other // depth, other % depth  # noqa: E741
                score = scaling * sum(a * b for a, b in zip(channels, other_channels, strict=True))
                score += formula(i - j, k, l)
                exponentials.append(math.exp(score) if j <= i else 0.0)
            expected = [
                sum(e * row[channel] for e, row in zip(exponentials, values, strict=True)) / sum(exponentials)
                for channel in range(4)
            ]
            assert output[0, head, entry].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_a_query_that_may_see_nothing_gets_numbers(backend):
    tensors = inputs(2, 6, 6)
    mask = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    mask[1, :, :3] = False
    scoring = Scoring(mask, BIASES["depth 2"][1], scaling=1.0, query_start=0, key_start=0, depth=2)
    output = attend(*tensors, scoring, backend=backend)
    gradients = torch.autograd.grad(output.sum(), tensors)
    assert all(tensor.isfinite().all() for tensor in (output, *gradients))


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_dropout_drops_weights_and_keeps_their_mean(backend):
    """With values 1, an output is the sum of the weights: 1 without dropout, 1 on average with it."""
    query, key, value = (tensor.detach() for tensor in inputs(1, 200, 200, batch=4))
    scoring = Scoring(None, BIASES["depth 1"][1], scaling=0.1, query_start=0, key_start=0)
    output = attend(query, key, torch.ones_like(value), scoring, dropout=0.3, backend=backend)
    assert output[..., 0].std() > 0.05
    assert output.mean().item() == pytest.approx(1, abs=0.05)


def test_flex_refuses_dropout():
    scoring = Scoring(None, BIASES["depth 1"][1], scaling=1.0, query_start=0, key_start=0)
    with pytest.raises(ValueError, match="use backend='sdpa' or dropout=0"):
        attend(*inputs(1, 4, 4), scoring, dropout=0.1, backend="flex")


class LargestTensor(TorchDispatchMode):
    """The size of the largest tensor that is made within."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for item in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(item, torch.Tensor):
                self.size = max(self.size, item.numel())
        return result


def largest_tensor(positions, masked, backend="sdpa"):
    depth = 4
    mask = torch.ones(1, 1, positions, positions, dtype=torch.bool).tril() if masked else None
    with LargestTensor() as largest:
        scoring = Scoring(mask, ToroidalDistance(0.1, 4096, depth), 0.25, query_start=0, key_start=0, depth=depth)
        output = attend(*inputs(depth, positions, positions, batch=1), scoring, backend=backend)
        output.sum().backward()
    return largest.size


@pytest.mark.parametrize("masked", [False, True])
def test_the_memory_of_sdpa_grows_with_the_length_only(masked):
    assert largest_tensor(1024, masked) <= 2.1 * (half := largest_tensor(512, masked))
    assert half < (512 * 4) ** 2 / 2
    assert largest_tensor(512, masked, backend="reference") >= (512 * 4) ** 2
