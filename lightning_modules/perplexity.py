"""Perplexity; without torch, so that finished runs are read fast."""

from __future__ import annotations

import math


def perplexity(nll: float) -> float:
    """exp of a mean negative log-likelihood in nats, infinite where that is too large for a number."""
    return math.exp(nll) if nll < 700 else math.inf
