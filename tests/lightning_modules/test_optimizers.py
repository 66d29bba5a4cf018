import itertools
import math

import pytest
import torch

from lightning_modules.learning_rate import scaled_lr, schedule_factor
from lightning_modules.optimizers import OPTIMIZERS


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_warm_up_rises_in_equal_steps_to_the_peak(schedule):
    factors = [schedule_factor(step, 100, schedule, 4) for step in range(5)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_without_warm_up_it_starts_at_the_peak(schedule):
    assert schedule_factor(0, 100, schedule, 0) == 1.0


@pytest.mark.parametrize(
    ("schedule", "half", "last"),
    [("cosine", 0.5, 0.5 * (1 + math.cos(math.pi * 0.99))), ("linear", 0.5, 0.01), ("constant", 1, 1)],
)
def test_the_schedule_falls_from_the_peak_to_nearly_nothing(schedule, half, last):
    factors = [schedule_factor(step, 110, schedule, 10) for step in range(110)]
    assert factors[60] == pytest.approx(half)
    assert factors[-1] == pytest.approx(last)
    assert all(one >= other > 0 for one, other in itertools.pairwise(factors[10:]))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_a_stage_of_few_steps_has_finite_factors(steps, warmup):
    assert all(0 < schedule_factor(step, steps, "cosine", warmup) <= 1 for step in range(steps))


@pytest.mark.parametrize(("rule", "lr"), [("none", 0.1), ("sqrt", 0.2), ("linear", 0.4)])
def test_the_learning_rate_scales_with_the_batch(rule, lr):
    assert scaled_lr(0.1, rule, batch_size=32, base_batch_size=8) == pytest.approx(lr)
    assert scaled_lr(0.1, rule, batch_size=8, base_batch_size=8) == pytest.approx(0.1)


def test_options_reach_the_optimizer():
    weights = [torch.nn.Parameter(torch.zeros(2))]
    adamw = OPTIMIZERS.build("adamw", parameters=weights, lr=0.5, weight_decay=0.2, beta1=0.7, beta2=0.8, eps=1e-3)
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults.items() >= {"lr": 0.5, "weight_decay": 0.2, "betas": (0.7, 0.8), "eps": 1e-3}.items()
    sgd = OPTIMIZERS.build("sgd", parameters=weights, lr=0.5, weight_decay=0.2, momentum=0.3)
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.defaults.items() >= {"lr": 0.5, "weight_decay": 0.2, "momentum": 0.3}.items()


@pytest.mark.parametrize(
    "options", [{"lr": 0.0}, {"beta1": 1.0}, {"weight_decay": -1.0}, {"eps": 0.0}, {"momentum": 0.9}]
)
def test_values_out_of_range_are_errors(options):
    (message,) = OPTIMIZERS.check("adamw", options, {"parameters"})
    assert next(iter(options)) in message


@pytest.mark.parametrize(("tokens_per_step", "beta2"), [(1_000, 0.5**0.1), (10_000, 0.5), (20_000, 0.25)])
def test_a_half_life_in_tokens_decides_beta2(tokens_per_step, beta2):
    optimizer = OPTIMIZERS.build(
        "adamw",
        parameters=[torch.nn.Parameter(torch.zeros(2))],
        beta2_half_life="10K",
        tokens_per_step=tokens_per_step,
    )
    assert optimizer.defaults["betas"] == (0.9, pytest.approx(beta2))
