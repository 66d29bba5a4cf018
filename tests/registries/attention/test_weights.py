"""The attention weights that a core tells: those that it attends by."""

import math

import pytest
import torch

from registries import ATTENTION
from registries.architectures import AttentionShape

SCALING = 0.25
PERIOD = 7

GROUPED = AttentionShape(num_heads=4, num_kv_heads=2, head_width=16, rotary_width=16)
UNGROUPED = AttentionShape(num_heads=4, num_kv_heads=4, head_width=16, rotary_width=16)
PARTLY_ROTARY = AttentionShape(num_heads=4, num_kv_heads=1, head_width=16, rotary_width=8)
SHAPES = [GROUPED, UNGROUPED, PARTLY_ROTARY]

# Whose output is nothing but the weights times the values.
UNMIXED = [
    ("standard", {}),
    ("window", {}),
    ("window", {"window": 0}),
    ("window", {"window": 2, "period": PERIOD}),
    ("toroidal", {"depth": 1}),
    ("toroidal", {"depth": 1, "lambda_distance": 3.0, "period": PERIOD}),
    ("toroidal", {"depth": 1, "lambda_distance": 3.0, "period": PERIOD, "position": "toroidal", "temperature": True}),
]
CUT = [
    ("toroidal", {"depth": depth, "lambda_distance": 3.0, "period": PERIOD, **more})
    for depth in (2, 4)
    for more in ({}, {"temperature": True, "fusion_mode": "attention", "frequencies": "neighbouring"})
]
EVERY = [*UNMIXED, *CUT, ("toroidal", {"depth": 2, "position": "toroidal", "period": PERIOD})]

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=["grouped", "ungrouped", "partly rotary"])


def cases(some):
    return pytest.mark.parametrize(("name", "options"), some, ids=[f"{name} {options}" for name, options in some])


@pytest.fixture
def make(make_core):
    """A core with temperatures that matter."""

    def make(name, shape, **options):
        core = make_core(name, shape, **options)
        if getattr(core, "log_temperature", None) is not None:
            torch.nn.init.normal_(core.log_temperature, std=0.5)
        return core

    return make


def a_mask(length, batch=2):
    """Causal, and the first three keys of the second row are padding."""
    mask = torch.ones(length, length, dtype=torch.bool).tril().repeat(batch, 1, 1, 1)
    mask[1, :, :, :3] = False
    mask[:, :, range(length), range(length)] = True
    return mask


def test_every_core_that_is_registered_is_tested():
    told = {name for name in ATTENTION.names() if hasattr(ATTENTION.get(name), "weights")}
    assert told == {name for name, _ in EVERY}


@each_shape
@cases(EVERY)
def test_rows_sum_to_1_and_no_query_sees_what_comes_later(name, options, shape, make, states):
    query, key, _ = states(20, shape)
    weights = make(name, shape, **options).weights(query, key, None, SCALING, 0, 0)
    assert weights.shape == (2, 4, 20, 20)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 20))
    assert (weights.triu(1) == 0).all()


@cases(EVERY)
def test_a_mask_is_kept(name, options, make, states):
    query, key, _ = states(20)
    weights, mask = make(name, GROUPED, **options).weights(query, key, a_mask(20), SCALING, 0, 0), a_mask(20)
    assert (weights.masked_select(~mask) == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 20))


@cases(EVERY)
def test_a_causal_mask_is_the_same_as_none(name, options, make, states):
    query, key, _ = states(20)
    core, mask = make(name, GROUPED, **options), torch.ones(20, 20, dtype=torch.bool).tril()[None, None]
    given = core.weights(query, key, mask, SCALING, 0, 0)
    torch.testing.assert_close(given, core.weights(query, key, None, SCALING, 0, 0))


@cases(EVERY)
def test_the_last_queries_of_a_text_have_the_same_weights(name, options, make, states):
    """As with a KV cache."""
    query, key, _ = states(20)
    core = make(name, GROUPED, **options)
    last = core.weights(query[:, :, 15:], key, None, SCALING, 15, 0)
    torch.testing.assert_close(last, core.weights(query, key, None, SCALING, 0, 0)[:, :, 15:])


@cases([*UNMIXED, *CUT])
def test_the_weights_of_dropped_keys_go_to_the_others(name, options, make, states):
    """As with a KV cache that has dropped the first keys; what the window cannot see stays out."""
    query, key, _ = states(20)
    core, mask = make(name, GROUPED, **options), a_mask(20)
    mask[:, :, :, :3] = False
    expected = core.weights(query, key, mask, SCALING, 0, 0)[:, :, 15:, 3:]
    torch.testing.assert_close(core.weights(query[:, :, 15:], key[:, :, 3:], None, SCALING, 15, 3), expected)


@each_shape
@cases(UNMIXED)
@pytest.mark.parametrize("masked", [False, True])
def test_weights_times_values_is_the_output(masked, name, options, shape, make, states):
    query, key, value = states(20, shape)
    core, mask = make(name, shape, **options), a_mask(20) if masked else None
    weights = core.weights(query, key, mask, SCALING, 0, 0)
    values = value.repeat_interleave(shape.num_heads // shape.num_kv_heads, dim=1)
    output = core(query, key, value, mask, SCALING, 0, 0)
    torch.testing.assert_close(weights @ values, output, rtol=1e-5, atol=1e-5)


def by_slices(core, shape, options, query, key):
    """Toroidal weights of one text, slice by slice, from the channels of each."""
    depth, half, width = options["depth"], shape.rotary_width // 2, shape.head_width
    length, groups = query.shape[1], shape.num_heads // shape.num_kv_heads
    channels = []
    for k in range(depth):
        pairs = range(k, half, depth)
        if options.get("frequencies") == "neighbouring":
            pairs = range(k * half // depth, (k + 1) * half // depth)
        rest = width - 2 * half
        unrotated = range(2 * half + k * rest // depth, 2 * half + (k + 1) * rest // depth)
        channels.append([*pairs, *(pair + half for pair in pairs), *unrotated])
    expected = torch.zeros(shape.num_heads, length, length)
    for head in range(shape.num_heads):
        temperature = 1.0 if core.log_temperature is None else core.log_temperature[head].exp().item()
        for i in range(length):
            for k in range(depth):
                scores = {}
                for j in range(i + 1):
                    for m in range(depth):
                        product = (query[head, i, channels[k]] * key[head // groups, j, channels[m]]).sum().item()
                        around = (i - j) % PERIOD
                        distance = min(around, PERIOD - around) / PERIOD + abs(k - m) / depth
                        scores[j, m] = (
                            product * SCALING * math.sqrt(depth) / temperature - options["lambda_distance"] * distance
                        )
                total = sum(math.exp(score) for score in scores.values())
                for (j, _), score in scores.items():
                    expected[head, i, j] += math.exp(score) / total / depth
    return expected


@each_shape
@cases(CUT)
def test_the_weights_of_slices_are_averaged_over_queries_and_summed_over_keys(name, options, shape, make, states):
    query, key, _ = states(10, shape, batch=1)
    core = make(name, shape, **options)
    weights = core.weights(query, key, None, SCALING, 0, 0)[0]
    torch.testing.assert_close(weights, by_slices(core, shape, options, query[0], key[0]), rtol=1e-4, atol=1e-6)


@each_shape
@pytest.mark.parametrize("depth", [2, 4])
def test_slices_of_constant_values_are_attended_by_these_weights(depth, shape, make, states):
    """Where each position's slices hold one number, the average slice of the output is the weighted sum of them."""
    query, key, value = states(20, shape)
    options = {"depth": depth, "lambda_distance": 3.0, "period": PERIOD, "fusion_mode": "identity"}
    core, numbers = make("toroidal", shape, **options), value[..., :1]
    output = core(query, key, numbers.expand_as(value), None, SCALING, 0, 0).mean(-1, keepdim=True)
    numbers = numbers.repeat_interleave(shape.num_heads // shape.num_kv_heads, dim=1)
    weights = core.weights(query, key, None, SCALING, 0, 0)
    torch.testing.assert_close(weights @ numbers, output, rtol=1e-5, atol=1e-5)


def test_heads_of_a_group_share_keys(make, states):
    query, key, _ = states(12, GROUPED)
    query = query[:, :1].expand_as(query)
    for name, options in EVERY:
        if options.get("temperature"):  # one of each head's own
            continue
        weights = make(name, GROUPED, **options).weights(query, key, None, SCALING, 0, 0)
        assert weights[:, 0].equal(weights[:, 1]) and weights[:, 2].equal(weights[:, 3])
        assert (name == "window" and options.get("window") == 0) or not weights[:, 1].allclose(weights[:, 2])


@cases(EVERY)
def test_weights_of_bf16_states_are_fp32(name, options, make, states):
    query, key, _ = (tensor.bfloat16() for tensor in states(12))
    core = make(name, GROUPED, **options).bfloat16()
    weights = core.weights(query, key, None, SCALING, 0, 0)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 12))
    full = core.float().weights(query.float(), key.float(), None, SCALING, 0, 0)
    torch.testing.assert_close(weights, full, rtol=0.1, atol=0.03)


@cases(EVERY)
def test_weights_have_gradients(name, options, make, states):
    query, key, _ = (tensor.requires_grad_() for tensor in states(12))
    core = make(name, GROUPED, **options)
    core.weights(query, key, None, SCALING, 0, 0).square().sum().backward()
    assert query.grad.isfinite().all() and key.grad.isfinite().all()
    assert (query.grad.abs().max() > 0) == (options.get("window") != 0)  # where only one can be seen it has all
