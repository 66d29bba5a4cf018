"""Whether one model is better than another: ratios with a paired confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from lightning_modules.perplexity import perplexity
from registries.registry import UserError

CONFIDENCE = 0.95

Documents = Sequence[tuple[float, int]]  # (summed nll in nats, scored tokens) per document


class Ratio(NamedTuple):
    """A ratio with the ends of its confidence interval, which are infinitely far apart where there is none."""

    value: float
    low: float
    high: float

    def named(self, name: str) -> dict[str, float]:
        """The metrics `name` and, where there is an interval, `name` with `_low` and `_high`: its ends."""
        ends = {f"{name}_low": self.low, f"{name}_high": self.high}
        return {name: self.value} | (ends if all(map(math.isfinite, ends.values())) else {})


def ppl_ratio(documents: Documents, reference: Documents) -> Ratio:
    """Perplexity over the reference's, on the same documents.

    The logarithm of the ratio is the mean difference of loss per token, a ratio of sums over documents: what both
    models find hard about a document cancels. With one document the interval is unbounded.

    Raises:
        UserError: the documents are not the same.
    """
    _require_same(documents, reference)
    differences = [nll - reference_nll for (nll, _), (reference_nll, _) in zip(documents, reference, strict=True)]
    return Ratio(*map(perplexity, _ratio_of_sums(differences, [tokens for _, tokens in documents])))


def share_of_gap(documents: Documents, floor: Documents, ceiling: Documents) -> Ratio | None:
    """How much of the loss between a floor and a ceiling is won back: (floor - ours) / (floor - ceiling).

    1 where nothing is lost, 0 at the floor, less below it; with the confidence interval of a ratio of sums over
    documents. None where the floor is no worse than the ceiling: there is no gap.

    Raises:
        UserError: the documents are not the same.
    """
    _require_same(documents, floor)
    _require_same(documents, ceiling)
    won = [low - nll for (nll, _), (low, _) in zip(documents, floor, strict=True)]
    gap = [low - high for (high, _), (low, _) in zip(ceiling, floor, strict=True)]
    return _ratio_of_sums(won, gap) if sum(gap) > 0 else None


def _ratio_of_sums(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """sum(a_i) / sum(b_i) over k documents with a 95 % confidence interval.

    A ratio estimate r over clusters, whose standard error is sqrt(k / (k - 1) sum((a_i - r b_i)^2)) / |sum(b_i)|
    (Cochran, Sampling Techniques, 3rd ed., equation 6.13); Student's interval with k - 1 degrees of freedom.
    """
    from scipy.stats import t

    total, k = sum(denominators), len(denominators)
    if not total:
        return Ratio(math.nan, -math.inf, math.inf)
    value = sum(numerators) / total
    if k < 2:
        return Ratio(value, -math.inf, math.inf)
    residuals = sum((a - value * b) ** 2 for a, b in zip(numerators, denominators, strict=True))
    margin = t.ppf((1 + CONFIDENCE) / 2, k - 1) * math.sqrt(k / (k - 1) * residuals) / abs(total)
    return Ratio(value, value - margin, value + margin)


def _require_same(documents: Documents, reference: Documents) -> None:
    if [count for _, count in documents] != [count for _, count in reference]:
        raise UserError("the two models were not scored on the same documents: they cannot be compared")
