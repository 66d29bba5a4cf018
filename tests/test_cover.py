"""The cover of a product of parameters has what it promises."""

from itertools import product

import pytest

from tests.cover import cover, values_of

AXES = {"family": ["gpt2", "llama", "gemma3"], "option": [None, 1, 2.5, 3], "mask": ["none", "2-D"]}
PRODUCT = [tuple(zip(AXES, values, strict=True)) for values in product(*AXES.values())]


def test_without_a_strength_only_repetitions_are_left_out():
    assert cover(PRODUCT) == {*range(len(PRODUCT))}
    assert cover([*PRODUCT, *PRODUCT]) == {*range(len(PRODUCT))}


def test_each_value_occurs():
    kept = [dict(PRODUCT[number]) for number in cover(PRODUCT, 1)]
    assert len(kept) == max(map(len, AXES.values()))
    for name, values in AXES.items():
        assert {case[name] for case in kept} == set(values)


def test_each_pair_of_values_occurs():
    kept = [dict(PRODUCT[number]) for number in cover(PRODUCT, 2)]
    assert len(kept) < len(PRODUCT)
    for first, second in (("family", "option"), ("family", "mask"), ("option", "mask")):
        assert {(case[first], case[second]) for case in kept} == set(product(AXES[first], AXES[second]))


def test_pairs_of_two_parameters_are_all_cases():
    cases = [values[:2] for values in PRODUCT]
    assert {cases[number] for number in cover(cases, 2)} == set(cases)


OPTIONS = {"depth": 1}


@pytest.mark.parametrize(("family", "rank"), [("llama", 1), pytest.param("qwen3", 1, marks=pytest.mark.full_product)])
@pytest.mark.parametrize("options", [OPTIONS])
def test_a_family_counts_as_its_kind_and_an_object_as_itself(family, rank, options, request):
    together = dict(values_of(request.node))
    assert together == {("options",): (id(OPTIONS),), ("family", "rank"): ("llama", id(rank))}
    apart = dict(values_of(request.node, ["family"]))
    assert apart == {("options",): (id(OPTIONS),), "family": "llama", ("rank",): (id(rank),)}
