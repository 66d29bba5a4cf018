import pytest

from registries.counts import is_count, number_of


@pytest.mark.parametrize(
    ("count", "number"), [(7, 7), ("7", 7), ("2.74M", 2_740_000), ("0.5K", 500), ("1B", 10**9), ("1.1B", 1_100_000_000)]
)
def test_a_count_is_its_number(count, number):
    assert number_of(count) == number


@pytest.mark.parametrize("text", ["", "M", "1 M", "-1", "1e6", "2.M", "two", "1MM", "1m", "\u0661K"])
def test_what_is_no_count(text):
    assert not is_count(text)
