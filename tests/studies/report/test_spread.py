import math
import random
from statistics import fmean, stdev

import pytest
from scipy.stats import ttest_ind

from studies.report.spread import Spread


def test_of_one_seed_nothing_is_known():
    assert Spread.of([[1.0], [2.0]]) is None
    assert Spread.of([]) is None


def test_the_spread_is_within_settings_and_not_between_them():
    spread = Spread.of([[1.0, 3.0], [101.0, 103.0], [7.0]])
    assert spread.sigma == pytest.approx(math.sqrt(2))
    assert spread.degrees == 2


def test_two_settings_are_told_apart_as_by_a_t_test():
    generator = random.Random(0)
    for _ in range(50):
        first = [generator.gauss(0, 1) for _ in range(4)]
        second = [generator.gauss(1.5, 1) for _ in range(3)]
        spread = Spread.of([first, second])
        assert spread.tells_apart(first, second) == (ttest_ind(first, second).pvalue < 0.05)


def test_eight_seeds_of_one_setting_give_the_spread_of_all():
    first = [0.1, -0.2, 0.3, 0.0, -0.1, 0.2, -0.3, 0.05]
    spread = Spread.of([first, [0.6]])
    assert (spread.sigma, spread.degrees) == (pytest.approx(stdev(first)), 7)
    least = 2.3646 * stdev(first) * math.sqrt(1 / 8 + 1)  # Student's t at 97.5 %, 7 degrees of freedom
    assert spread.least_difference(8, 1) == pytest.approx(least, rel=1e-4)
    assert spread.tells_apart(first, [fmean(first) + 1.01 * least])
    assert not spread.tells_apart(first, [fmean(first) + 0.99 * least])


def test_a_difference_that_is_none_is_told_apart_in_one_of_twenty():
    generator, told = random.Random(1), 0
    for _ in range(1000):
        settings = [[generator.gauss(0, 1) for _ in range(3)] for _ in range(5)]
        told += Spread.of(settings).tells_apart(*settings[:2])
    assert 30 <= told <= 70
