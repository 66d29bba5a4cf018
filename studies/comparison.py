"""Whether one model is better than another: the ratio of their perplexities with a paired confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from lightning_modules.nll import perplexity
from registries.registry import UserError

CONFIDENCE = 0.95

Documents = Sequence[tuple[float, int]]  # (summed nll in nats, scored tokens) per document


class Ratio(NamedTuple):
    """A ratio of perplexities with the ends of its confidence interval."""

    value: float
    low: float
    high: float


def ppl_ratio(documents: Documents, reference: Documents) -> Ratio:
    """Perplexity over the reference's, on the same documents.

    The logarithm of the ratio is the mean difference of loss per token, r = sum(d_i) / sum(n_i) over documents with
    n_i tokens and difference d_i: a ratio estimate over k clusters, whose standard error is
    sqrt(k / (k - 1) sum((d_i - r n_i)^2)) / sum(n_i) (Cochran, Sampling Techniques, 3rd ed., equation 6.13). The
    interval is Student's with k - 1 degrees of freedom; what both models find hard about a document cancels. With one
    document it is unbounded.

    Raises:
        UserError: the documents are not the same.
    """
    from scipy.stats import t

    tokens = [count for _, count in documents]
    if tokens != [count for _, count in reference]:
        raise UserError("the two models were not scored on the same documents: they cannot be compared")
    differences = [ours - theirs for (ours, _), (theirs, _) in zip(documents, reference, strict=True)]
    total, k = sum(tokens), len(tokens)
    mean = sum(differences) / total
    if k < 2:
        return Ratio(perplexity(mean), 0.0, math.inf)
    residuals = sum((d - mean * n) ** 2 for d, n in zip(differences, tokens, strict=True))
    margin = t.ppf((1 + CONFIDENCE) / 2, k - 1) * math.sqrt(k / (k - 1) * residuals) / total
    return Ratio(*(perplexity(value) for value in (mean, mean - margin, mean + margin)))
