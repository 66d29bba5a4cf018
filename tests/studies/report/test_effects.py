from pathlib import Path

import pytest

from studies.report.effects import axis_effects, in_order, is_number
from studies.report.sweep_table import Setting


def setting(depth, rate, losses):
    runs = [
        (Path("nowhere"), {"status": "finished", "metrics": {"val/loss": loss}, "config": {"seed": seed}})
        for seed, loss in losses.items()
    ]
    return Setting({"depth": depth, "rate": rate}, runs)


def test_an_effect_is_that_of_runs_alike_in_all_else():
    settings = [setting("2", "a", {0: 1.0}), setting("10", "a", {0: 1.5}), setting("2", "b", {0: 5.0})]
    by_value = {(effect.key, effect.value): effect for effect in axis_effects(settings, "val/loss")}
    assert by_value["depth", "10"].difference == pytest.approx(0.5) and by_value["depth", "10"].pairs == 1
    assert by_value["depth", "10"].margin is None and by_value["depth", "2"].difference is None
    assert by_value["rate", "b"].difference == pytest.approx(4.0) and by_value["depth", "2"].mean == pytest.approx(3.0)


def test_without_seeds_the_pairs_give_the_interval():
    settings = [
        setting(depth, rate, {0: loss})
        for depth, rate, loss in [("2", "a", 1.0), ("4", "a", 1.2), ("2", "b", 2.0), ("4", "b", 2.4)]
    ]
    effect = next(effect for effect in axis_effects(settings, "val/loss") if effect.value == "4")
    assert effect.difference == pytest.approx(0.3) and effect.margin == pytest.approx(12.706 * 0.1, rel=1e-3)


def test_with_seeds_their_spread_gives_it():
    settings = [setting("2", "a", {0: 1.0, 1: 1.2}), setting("4", "a", {0: 2.0, 1: 2.2})]
    effect = next(effect for effect in axis_effects(settings, "val/loss") if effect.value == "4")
    assert effect.pairs == 2 and effect.margin == pytest.approx(4.303 * 0.02**0.5, rel=1e-3)


def test_values_are_ordered_as_numbers_are():
    assert in_order(["10", "2", "1e-3", "b", "a"]) == ["1e-3", "2", "10", "a", "b"]
    assert is_number("-1.5e+3") and not is_number("nan") and not is_number("300K")
