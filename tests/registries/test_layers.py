import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registries.layers import resolve_layers
from registries.registry import UserError


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        ([0, 16], [0, 16]),
        ([16, 0], [0, 16]),
        ([-1], [29]),
        ([-30, 29], [0, 29]),
        (3, [3]),
        ("3", [3]),
        ("-1", [29]),
        ("all", list(range(30))),
        (" all ", list(range(30))),
        ("first:4", [0, 1, 2, 3]),
        ("last:4", [26, 27, 28, 29]),
        ("ends:2", [0, 1, 28, 29]),
        ("ends:20", list(range(30))),
        ("every:4", [0, 4, 8, 12, 16, 20, 24, 28]),
        ("every:30", [0]),
        ("8-15", [8, 9, 10, 11, 12, 13, 14, 15]),
        ("7-7", [7]),
        ("spread:1", [0]),
        ("spread:2", [0, 15]),
        ("spread:4", [0, 7, 15, 22]),
        ("spread:30", list(range(30))),
        ("first:10%", [0, 1, 2]),
        ("last:10%", [27, 28, 29]),
        ("ends:10%", [0, 1, 2, 27, 28, 29]),
        ("ends:60%", list(range(30))),
        ("spread:10%", [0, 10, 20]),
        ("first:12.5%", [0, 1, 2, 3]),  # 3.75 layers
        ("first:11%", [0, 1, 2]),  # 3.3
        ("spread:1%", [0]),  # at least one
        ("last:1%", [29]),
        ("first:100%", list(range(30))),
        (" spread:50% ", list(range(0, 30, 2))),
    ],
)
def test_forms(spec, layers):
    assert resolve_layers(spec, 30) == layers


@pytest.mark.parametrize(
    "spec",
    [
        "first:0", "first:-1", "middle:2", "15-8", "", "none", "first", [], [1.0], ["1"], [True],
        "first:" + "9" * 5000, "9" * 5000, "first:" + "9" * 400 + "%",
        "every:25%", "first:%", "first:-5%", "first:a%", "25%", "spread:0", "spread:2.5", "first:25 %",
    ],
)  # fmt: skip
def test_what_is_no_layer_spec(spec):
    with pytest.raises(UserError, match=r"is not a layer spec. Allowed: \[0,16\], \[-1\], all, first:4"):
        resolve_layers(spec, 30)


@pytest.mark.parametrize(
    ("spec", "layer"), [([30], 30), ([0, -31], -31), ("25-40", 30), ("0-999999999", 30), ("99", 99), (-31, -31)]
)
def test_layers_that_the_model_does_not_have(spec, layer):
    with pytest.raises(UserError, match=rf"names layer {layer}, but this model's layers are 0 to 29 \(or -30 to -1\)"):
        resolve_layers(spec, 30)


@pytest.mark.parametrize(
    "spec", ["first:31", "last:31", "ends:31", "every:31", "spread:31", "first:103%", "spread:104%"]
)
def test_more_layers_than_there_are(spec):
    with pytest.raises(UserError, match="asks for 31 layers, but this model has 30"):
        resolve_layers(spec, 30)


@pytest.mark.parametrize(("spec", "layer"), [([0, 0], 0), ([29, -1], 29)])
def test_a_layer_named_twice(spec, layer):
    with pytest.raises(UserError, match=f"names layer {layer} twice"):
        resolve_layers(spec, 30)


@given(st.integers(1, 50).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(-n, n - 1), min_size=1))))
def test_indices_from_either_end(model):
    num_layers, indices = model
    unique = {index % num_layers for index in indices}
    if len(unique) < len(indices):
        with pytest.raises(UserError, match="twice"):
            resolve_layers(list(indices), num_layers)
    else:
        assert resolve_layers(list(indices), num_layers) == sorted(unique)


@given(st.integers(1, 50).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_counted_forms(model):
    num_layers, count = model
    every = range(num_layers)
    assert resolve_layers(f"first:{count}", num_layers) == [layer for layer in every if layer < count]
    assert resolve_layers(f"last:{count}", num_layers) == [layer for layer in every if layer >= num_layers - count]
    assert resolve_layers(f"ends:{count}", num_layers) == [
        layer for layer in every if layer < count or layer >= num_layers - count
    ]
    assert resolve_layers(f"every:{count}", num_layers) == [layer for layer in every if layer % count == 0]


@given(st.integers(1, 50).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_a_spread_starts_at_the_first_layer_with_distances_that_differ_by_one_at_most(model):
    num_layers, count = model
    layers = resolve_layers(f"spread:{count}", num_layers)
    assert len(layers) == count
    assert layers[0] == 0
    distances = [after - before for before, after in pairwise([*layers, num_layers])]
    assert max(distances) - min(distances) <= 1


@given(st.integers(1, 80), st.integers(1, 400), st.sampled_from(["first", "last", "ends", "spread"]))
def test_a_share_is_the_nearest_count_and_at_least_one_layer(num_layers, quarters, form):
    """In quarters of a percent; a half may go either way."""
    percent = quarters / 4
    share = num_layers * percent / 100
    layers = resolve_layers(f"{form}:{percent}%", num_layers)
    counts = {max(1, count) for count in (math.floor(share), math.ceil(share)) if abs(count - share) <= 0.5}
    assert layers in [resolve_layers(f"{form}:{count}", num_layers) for count in counts]


SPECS = r"-?\d{1,3}(-\d{1,3})?|(first|last|ends|every|spread):\d{1,3}(\.\d?)?%?"


@given(st.text(max_size=12) | st.from_regex(SPECS, fullmatch=True), st.integers(1, 40))
def test_any_text_gives_layers_or_an_error_for_the_user(spec, num_layers):
    try:
        layers = resolve_layers(spec, num_layers)
    except UserError:
        return
    assert layers == sorted(set(layers))
    assert 0 <= layers[0] <= layers[-1] < num_layers


def test_a_place_beyond_the_last_layer():
    assert resolve_layers("at:100%", 4) == [3]
    with pytest.raises(UserError, match="'at:150%' lies beyond the last layer, which is at:100%"):
        resolve_layers("at:150%", 4)
