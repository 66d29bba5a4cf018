import math
from pathlib import Path

import pytest

from studies.report.rate_rule import best_rate, rate_notes, rate_rule

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


def losses(best, curvature=0.3):
    return {rate: 1 + curvature * (math.log(rate) - math.log(best)) ** 2 for rate in RATES}


@pytest.mark.parametrize("best", [2e-3, 7e-3, 1e-2, 5e-2])
def test_the_best_rate_is_found_between_those_that_were_tried(best):
    assert best_rate(losses(best)) == pytest.approx(best)


@pytest.mark.parametrize("best", [5e-4, 5e-1])
def test_a_best_rate_at_the_edge_is_not_known(best):
    assert best_rate(losses(best)) is None
    assert best_rate({1e-3: 1.0}) is None
    assert best_rate(dict.fromkeys(RATES, 1.0)) is None


def test_the_slope_of_a_square_root_rule_is_a_half():
    rule = rate_rule(
        [(size, 1e-3 * size**0.5 * noise) for size in (4, 8, 16) for noise in (0.9, 1.0, 1.1)] + [(32, None)]
    )
    assert rule.slope == pytest.approx(0.5)
    assert rule.low < 0.5 < rule.high
    assert (rule.count, rule.at_the_edge) == (9, 1)
    assert rate_rule([(4, 1e-3), (8, 2e-3)]) is None
    assert rate_rule([(4, 1e-3)] * 5) is None


def runs(axis, rule):
    for size in (4, 8, 16):
        for seed in (0, 1):
            for rate, loss in losses(rule(size)).items():
                group, key = axis.split(".")
                config = {"trainer": {}, "dataset": {"name": "text"}, "optimizer": {"name": "adamw", "lr": rate}}
                config |= {"model": {"name": "lstm"}, "seed": seed}
                config[group] = {**config[group], key: size}
                metrics = {"val/loss": loss, "params/total": size**2}
                yield Path("nowhere"), {"status": "finished", "config": config, "metrics": metrics, "dataset": {}}


def test_a_sweep_over_batches_and_rates_tells_its_rule():
    (note,) = rate_notes(list(runs("dataset.batch_size", lambda size: 1e-3 * size)))
    assert note == (
        "how the best rate follows the batch size: it goes with the power 1.00 (1.00 to 1.00), by 6 best rates"
    )


def test_the_size_of_a_model_is_what_it_has_and_not_what_was_asked_for():
    (note,) = rate_notes(list(runs("model.parameters", lambda size: 1e-3 * size)))
    assert "the parameters: it goes with the power 0.50" in note


def test_a_sweep_over_something_else_tells_none():
    at_one_rate = [run for run in runs("dataset.batch_size", float) if run[1]["config"]["optimizer"]["lr"] == 1e-3]
    assert rate_notes(at_one_rate) == []
