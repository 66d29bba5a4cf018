import json
import math
import re
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from registries import ATTENTION
from registries.architectures import AttentionShape
from registries.attention.toroidal import Frequencies, ToroidalDistance, ToroidalPositions, legal_depths, slice_order
from registries.model_shape import shape_of
from registries.models.pretrained import CONFIGS

PERIOD = 16


# Distance


@pytest.mark.parametrize("weight", [0.0, 0.1, 2.0])
def test_bias_is_the_formula(weight):
    depth, offsets = 4, [0, 1, 3, 8, 9, 15, 16, 19, 100, -1, -8]
    bias = ToroidalDistance(weight, PERIOD, depth)(torch.tensor(offsets))
    for n, offset in enumerate(offsets):
        t = offset % PERIOD
        for k in range(depth):
            for l in range(depth):  # noqa: E741
                expected = -weight * (min(t, PERIOD - t) / PERIOD + abs(k - l) / depth)
                assert bias[n, k, l].item() == pytest.approx(expected, abs=1e-6)


def test_bias_of_some_distances():
    """By hand: half way round is the furthest, and one position short of a whole turn is as near as one position."""
    bias = ToroidalDistance(1.0, 16, 2)(torch.tensor([0, 8, 15, 16]))
    assert bias.tolist() == [
        [[0, -0.5], [-0.5, 0]],
        [[-0.5, -1], [-1, -0.5]],
        [[-0.0625, -0.5625], [-0.5625, -0.0625]],
        [[0, -0.5], [-0.5, 0]],
    ]


# Slices


@st.composite
def shapes_and_depths(draw):
    head_width = draw(st.integers(1, 32)) * 4
    rotary_width = draw(st.integers(0, head_width // 2).map(lambda pairs: 2 * pairs))
    shape = AttentionShape(4, 2, head_width, rotary_width)
    return shape, draw(st.sampled_from(legal_depths(shape)))


@given(shapes_and_depths(), st.sampled_from(get_args(Frequencies)))
def test_slices_share_out_the_channels_in_whole_rotary_pairs(shape_and_depth, frequencies):
    shape, depth = shape_and_depth
    order, half = slice_order(shape, depth, frequencies), shape.rotary_width // 2
    assert order.sort().values.tolist() == list(range(shape.head_width))
    for channels in order.unflatten(0, (depth, -1)).tolist():
        turned = len([channel for channel in channels if channel < shape.rotary_width])
        assert turned == shape.rotary_width // depth
        first, second = channels[: turned // 2], channels[turned // 2 : turned]
        assert [channel + half for channel in first] == second


def test_which_frequencies_a_slice_gets():
    """By hand: pair p is channels p and p + 4; channels 8 and 9 are not turned."""
    shape = AttentionShape(1, 1, head_width=10, rotary_width=8)
    assert slice_order(shape, 2, "neighbouring").tolist() == [0, 1, 4, 5, 8, 2, 3, 6, 7, 9]
    assert slice_order(shape, 2, "interleaved").tolist() == [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]


@given(shapes_and_depths())
def test_legal_depths_divide_the_pairs_and_the_other_channels(shape_and_depth):
    shape, _ = shape_and_depth
    pairs, unrotated = shape.rotary_width // 2, shape.head_width - shape.rotary_width
    possible = [d for d in range(1, shape.head_width + 1) if pairs % d == 0 and unrotated % d == 0]
    assert legal_depths(shape) == possible


@pytest.mark.parametrize(("model", "depths"), [("phi2", [1, 2, 4, 8, 16]), ("smollm2_135m", [1, 2, 4, 8, 16, 32])])
def test_legal_depths_of_real_models(model, depths):
    shape = shape_of(json.loads((CONFIGS / f"{model}.json").read_text())).attention(0)
    assert legal_depths(shape) == depths


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_values_and_output_keep_their_channels(depth, make_core, states):
    """With so large a lambda that each slice of a position sees itself alone, the output is the value."""
    query, key, value = states(10)
    core = make_core("toroidal", depth=depth, lambda_distance=1e6)
    torch.testing.assert_close(core(query, key, value, None, 0.25, 0, 0), value.repeat_interleave(2, dim=1))


@pytest.mark.parametrize("frequencies", get_args(Frequencies))
@pytest.mark.parametrize("depth", [2, 4])
def test_slices_that_see_only_themselves_are_heads_of_their_own(depth, frequencies, make_core, states, shape):
    """So long a ring that only the distance in depth counts."""
    query, key, value = states(10)
    core = make_core("toroidal", depth=depth, frequencies=frequencies, lambda_distance=200.0, period=10**9)
    standard, order = make_core("standard"), slice_order(shape, depth, frequencies)
    query_slices, key_slices = (tensor[..., order].chunk(depth, dim=-1) for tensor in (query, key))
    expected = [
        standard(*slices, None, 0.25 * math.sqrt(depth), 0, 0)
        for slices in zip(query_slices, key_slices, value.chunk(depth, dim=-1), strict=True)
    ]
    torch.testing.assert_close(core(query, key, value, None, 0.25, 0, 0), torch.cat(expected, dim=-1))


def test_slices_attend_to_the_others_too(make_core, states):
    """A change of one slice of an earlier value reaches every slice of a later output."""
    query, key, value = states(10)
    core, changed = make_core("toroidal", depth=4), value.clone()
    changed[:, :, 3, :4] += torch.randn(4)
    difference = core(query, key, value, None, 0.25, 0, 0) - core(query, key, changed, None, 0.25, 0, 0)
    assert difference[:, :, :3].abs().max() == 0
    assert (difference[:, :, 3:].unflatten(-1, (4, 4)).abs().amax(-1) > 0).all()


# Position codes


@pytest.mark.parametrize(("depth", "rotary_width"), [(1, 16), (2, 16), (4, 16), (2, 8)])
def test_codes_are_the_formula(depth, rotary_width):
    shape = AttentionShape(1, 1, 16, rotary_width)
    codes, pairs = ToroidalPositions(shape, depth, PERIOD), rotary_width // 2 // depth
    states, start = torch.randn(1, 1, 20, depth, 16 // depth), 7
    turned = codes(states, start)
    for n in range(20):
        for k in range(depth):
            for m in range(pairs):
                harmonic, depth_harmonic = codes.harmonics[m].item(), codes.depth_harmonics[m].item()
                angle = 2 * math.pi * (harmonic * (start + n) / PERIOD + depth_harmonic * k / depth)
                pair = torch.complex(*states[0, 0, n, k, [m, m + pairs]])
                expected = pair * torch.polar(torch.tensor(1.0), torch.tensor(angle))
                torch.testing.assert_close(torch.complex(*turned[0, 0, n, k, [m, m + pairs]]), expected)
    assert turned[..., 2 * pairs :].equal(states[..., 2 * pairs :])


@pytest.mark.parametrize("period", [2, 10, 16, 17, 2048])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_codes_wrap_exactly(period, depth, shape):
    codes = ToroidalPositions(shape, depth, period)
    states = torch.randn(1, 2, 30, depth, 16 // depth)
    assert codes(states, 3).equal(codes(states, 3 + period))
    assert codes(states, 3).equal(codes(states, 3 + 1000 * period))
    if period > 2:
        assert not codes(states, 3).allclose(codes(states, 4))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_bases_of_sequence_and_depth_are_orthogonal(depth, shape):
    codes = ToroidalPositions(shape, depth, 2048)
    assert not codes.harmonics.is_floating_point()
    assert (codes.harmonics * codes.depth_harmonics).sum() == 0
    assert codes.harmonics.any()
    assert bool(codes.depth_harmonics.any()) == (depth > 1)


def test_harmonics_follow_the_models_frequencies(shape):
    codes = ToroidalPositions(shape, 1, 2048)
    expected = [max(1, round(10_000.0 ** (-m / 8) * 2048 / (2 * math.pi))) for m in range(8)]
    assert codes.harmonics.tolist() == expected
    slower = ToroidalPositions(AttentionShape(4, 2, 16, 16, rotary_base=1e6), 1, 2048)
    assert (slower.harmonics <= codes.harmonics).all() and slower.harmonics[1] < codes.harmonics[1]


def test_codes_survive_a_change_of_dtype(make_core):
    core = make_core("toroidal", position="toroidal", period=2048)
    before = core.codes.harmonics.clone()
    assert core.bfloat16().codes.harmonics.equal(before)


# The ring


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("shift", [1, 5, 11])
def test_a_shift_round_the_ring_shifts_the_output(shift, depth, backend, make_core, states):
    """Where every position sees every other."""
    core = make_core(
        "toroidal",
        depth=depth,
        position="toroidal",
        period=PERIOD,
        lambda_distance=2.0,
        backend=backend,
        temperature=True,
    )
    inputs, everything = states(PERIOD), torch.ones(2, 1, PERIOD, PERIOD, dtype=torch.bool)
    output = core(*inputs, everything, 0.25, 0, 0)
    shifted = core(*(tensor.roll(shift, dims=2) for tensor in inputs), everything, 0.25, 0, 0)
    torch.testing.assert_close(shifted, output.roll(shift, dims=2), rtol=1e-4, atol=1e-5)
    assert (shifted - output).abs().max() > 0.1


@pytest.mark.parametrize("position", ["model", "toroidal"])
def test_only_offsets_count(position, make_core, states):
    """Not where a text starts, so that padding on the left cannot matter."""
    core = make_core("toroidal", depth=4, position=position, period=PERIOD, lambda_distance=2.0)
    inputs = states(40)
    torch.testing.assert_close(core(*inputs, None, 0.25, 5, 5), core(*inputs, None, 0.25, 0, 0), rtol=1e-4, atol=1e-5)


# Gradients and parameters


@pytest.mark.parametrize("mask", [None, torch.ones(1, 1, 45, 45, dtype=torch.bool).tril()], ids=["none", "causal"])
@pytest.mark.parametrize(
    "fusion", [{"fusion_mode": "low_rank", "fusion_residual": False}, {"fusion_mode": "attention"}]
)
@pytest.mark.parametrize("position", ["model", "toroidal"])
def test_backends_agree_on_the_gradients_of_the_parameters(position, fusion, mask, make_core, states):
    gradients = {}
    for backend in ("reference", "sdpa"):
        core = make_core("toroidal", depth=4, position=position, temperature=True, backend=backend, **fusion)
        torch.nn.init.normal_(core.log_temperature)
        output = core(*states(45), mask, 0.25, 0, 0)
        torch.manual_seed(2)
        (output * torch.randn_like(output)).sum().backward()
        gradients[backend] = {name: parameter.grad for name, parameter in core.named_parameters()}
    assert len(gradients["sdpa"]) == 3
    assert all(gradient.abs().max() > 0 for gradient in gradients["sdpa"].values())
    torch.testing.assert_close(gradients["sdpa"], gradients["reference"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "keeps"),
    [
        ({"depth": 1, "lambda_distance": 0.0}, True),
        ({"depth": 1, "lambda_distance": 0.0, "fusion_mode": "attention", "temperature": True}, True),
        ({"depth": 1, "lambda_distance": 0.0, "fusion_residual": False}, False),
        ({"depth": 1, "lambda_distance": 0.0, "position": "toroidal"}, False),
        ({"depth": 1}, False),
        ({"depth": 2, "lambda_distance": 0.0}, False),
    ],
)
def test_what_keeps_the_function_says_so(options, keeps, make_core, states):
    core, arguments = make_core("toroidal", **options), (*states(20), None, 0.25, 0, 0)
    assert core.keeps_function == keeps
    if keeps:
        torch.testing.assert_close(core(*arguments), make_core("standard")(*arguments), rtol=1e-5, atol=1e-5)


# Checks


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ({"depth": 3}, [r"depth=3 .*width 16, of which 16 rotary.*Allowed: \[1, 2, 4, 8\]"]),
        ({"depth": 16}, [r"Allowed: \[1, 2, 4, 8\]"]),
        ({"depth": 8, "position": "toroidal"}, [r"two rotary pairs in a slice.*Allowed: \[1, 2, 4\]"]),
        ({"depth": 2, "fusion_rank": 3}, ["fusion_rank=3 is above the depth. Allowed: 1 to 2"]),
        ({"depth": 3, "fusion_rank": 4, "period": 0}, ["period=0", "depth=3", "fusion_rank=4"]),
        ({"depth": 8}, []),
        ({"depth": 4, "position": "toroidal", "fusion_rank": 4}, []),
    ],
)
def test_options_that_the_model_does_not_allow(options, messages, shape):
    found = ATTENTION.check("toroidal", options, {"shape"}, shape=shape)
    assert len(found) == len(messages)
    for text, pattern in zip(found, messages, strict=True):
        assert re.search(pattern, text)


def test_flex_needs_cuda_and_no_dropout(monkeypatch, shape):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (message,) = ATTENTION.check("toroidal", {"backend": "flex"}, {"shape"}, shape=shape)
    assert "needs a CUDA device. Allowed here: auto, reference, sdpa" in message
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (message,) = ATTENTION.check("toroidal", {"backend": "flex", "dropout": 0.1}, {"shape"}, shape=shape)
    assert "cannot drop attention weights" in message
