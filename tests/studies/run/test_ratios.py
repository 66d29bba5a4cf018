"""The ratio of two perplexities and its interval, against what they say they are."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registries.registry import UserError
from studies.run.ratios import ppl_ratio, share_of_gap

NATS = st.floats(0, 500)
PAIRED = st.lists(st.tuples(NATS, NATS, st.integers(1, 100)), min_size=1, max_size=20)


def split(paired):
    """(our nll, their nll, tokens) per document -> our documents and theirs."""
    return [(ours, count) for ours, _, count in paired], [(theirs, count) for _, theirs, count in paired]


def perplexity(documents):
    return math.exp(sum(nll for nll, _ in documents) / sum(count for _, count in documents))


def logs(ratio):
    """Logarithms of the lower end, the value and the upper end."""
    return [math.log(end) if end else -math.inf for end in (ratio.low, ratio.value, ratio.high)]


@given(st.lists(st.tuples(NATS, NATS, st.integers(100, 1000)), min_size=1, max_size=20))
def test_the_value_is_the_ratio_of_the_perplexities_over_all_tokens(paired):
    ours, theirs = split(paired)
    ratio = ppl_ratio(ours, theirs)
    assert ratio.value == pytest.approx(perplexity(ours) / perplexity(theirs), rel=1e-9)
    assert ratio.low <= ratio.value <= ratio.high


def test_long_documents_count_by_their_tokens():
    """Not by document: the mean of the documents' own ratios is another number."""
    ratio = ppl_ratio([(1000.0, 100), (2.0, 1)], [(900.0, 100), (0.0, 1)])
    assert math.log(ratio.value) == pytest.approx(102 / 101)


def test_the_interval_is_students_for_a_ratio_estimate():
    """Two documents by hand: r = 6 / 4, d - r n = (-1/2, 1/2), error sqrt(2 x 1/2) / 4, and t = 12.706."""
    ratio = ppl_ratio([(1.0, 1), (5.0, 3)], [(0.0, 1), (0.0, 3)])
    assert logs(ratio) == pytest.approx([1.5 - 12.7062 / 4, 1.5, 1.5 + 12.7062 / 4], rel=1e-4)


def test_the_interval_covers_the_truth_in_19_of_20_studies():
    """Tokens of a document share their difficulty and their difference, which is larger in longer documents."""
    rng, trials, k, mean_length, slope = np.random.default_rng(0), 1000, 40, 100, 0.001
    lengths = rng.integers(20, 181, (trials, k))
    truth = 0.05 + slope * ((161**2 - 1) / 12) / mean_length  # E[d] / E[n] with d = n (0.05 + slope (n - mean))
    of_document = 0.05 + slope * (lengths - mean_length) + rng.normal(0, 0.1, (trials, k))
    differences = lengths * of_document + rng.normal(0, 0.3, (trials, k)) * np.sqrt(lengths)
    shared = lengths * rng.normal(3, 1, (trials, k))
    covered = 0
    for n, d, hard in zip(lengths.tolist(), differences, shared, strict=True):
        ratio = ppl_ratio(list(zip(hard + d, n, strict=True)), list(zip(hard, n, strict=True)))
        covered += ratio.low <= math.exp(truth) <= ratio.high
    assert 0.92 < covered / trials < 0.97


@given(PAIRED, st.data())
def test_what_both_models_find_hard_cancels(paired, data):
    ours, theirs = split(paired)
    hard = data.draw(st.lists(NATS, min_size=len(paired), max_size=len(paired)))
    harder = [[(nll + h, n) for (nll, n), h in zip(some, hard, strict=True)] for some in (ours, theirs)]
    if len(paired) > 1 and max(map(abs, logs(ppl_ratio(ours, theirs)))) < 100:
        assert logs(ppl_ratio(*harder)) == pytest.approx(logs(ppl_ratio(ours, theirs)), abs=1e-6)


@given(st.lists(st.tuples(NATS, NATS, st.integers(100, 1000)), min_size=2, max_size=20))
def test_swapping_the_models_gives_the_reciprocal(paired):
    ours, theirs = split(paired)
    ratio, swapped = ppl_ratio(ours, theirs), ppl_ratio(theirs, ours)
    assert logs(swapped) == pytest.approx([-end for end in reversed(logs(ratio))], abs=1e-9)


def test_a_model_is_as_good_as_itself():
    documents = [(10.0, 4), (3.0, 2), (7.0, 7)]
    assert ppl_ratio(documents, documents) == (1, 1, 1)


def test_more_documents_narrow_the_interval():
    few = [(12.0, 10), (11.0, 10), (13.0, 10)]
    widths = [np.diff(logs(ppl_ratio(few * times, [(10.0, 10)] * 3 * times))[::2]).item() for times in (1, 4, 16)]
    assert widths[0] > 2 * widths[1] > 4 * widths[2] > 0


def test_one_document_says_nothing_about_others():
    ratio = ppl_ratio([(20.0, 10)], [(10.0, 10)])
    assert ratio.value == pytest.approx(math.e)
    assert (ratio.low, ratio.high) == (0, math.inf)


@pytest.mark.parametrize("reference", [[(1.0, 2)], [(1.0, 3), (1.0, 2)], [(1.0, 2), (1.0, 3), (1.0, 1)], []])
def test_other_documents_cannot_be_compared(reference):
    with pytest.raises(UserError, match="not scored on the same documents"):
        ppl_ratio([(1.0, 2), (1.0, 3)], reference)


class TestShareOfGap:
    floor, ceiling = [(30.0, 10), (40.0, 10), (35.0, 10)], [(10.0, 10), (20.0, 10), (15.0, 10)]

    def test_it_is_one_at_the_ceiling_and_nothing_at_the_floor(self):
        assert share_of_gap(self.ceiling, self.floor, self.ceiling) == (1, 1, 1)
        assert share_of_gap(self.floor, self.floor, self.ceiling) == (0, 0, 0)

    def test_between_them_and_below(self):
        between = [(15.0, 10), (25.0, 10), (20.0, 10)]
        assert share_of_gap(between, self.floor, self.ceiling).value == 0.75
        assert share_of_gap([(50.0, 10)] * 3, self.floor, self.ceiling).value == -0.75

    def test_documents_that_differ_widen_the_interval(self):
        share = share_of_gap([(10.0, 10), (40.0, 10), (35.0, 10)], self.floor, self.ceiling)
        assert share.value == pytest.approx(1 / 3)
        assert share.low < 0 < 1 < share.high

    def test_there_is_no_share_of_no_gap(self):
        assert share_of_gap(self.ceiling, self.ceiling, self.floor) is None
        assert share_of_gap(self.floor, self.floor, self.floor) is None

    def test_other_documents_are_refused(self):
        with pytest.raises(UserError, match="not scored on the same documents"):
            share_of_gap(self.floor, self.floor, self.ceiling[:2])


def test_an_interval_that_is_none_is_no_metric():
    assert ppl_ratio([(20.0, 10)], [(10.0, 10)]).named("val/ppl_ratio") == {"val/ppl_ratio": pytest.approx(math.e)}
    ratio = ppl_ratio([(20.0, 10), (3.0, 2)], [(10.0, 10), (2.0, 2)])
    assert ratio.named("r") == {"r": ratio.value, "r_low": ratio.low, "r_high": ratio.high}
