"""The one loss of a language model, in training and in scoring."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

IGNORED = -100
CHUNK_LOGITS = 2**22  # in fp32 at a time: what a processor's cache holds


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of each token given those before it, in fp32.

    Everything that is scored goes through here: position t predicts token t + 1, and the first token of a row is never
    scored.

    Args:
        logits: (batch, length, vocabulary).
        labels: (batch, length) token ids, unshifted; -100 is not scored.

    Returns:
        (batch, length - 1) in nats; 0 where a token is not scored.
    """
    targets = labels[:, 1:]
    pairs = _chunks(logits[:, :-1].flatten(0, 1), targets.flatten())
    nll = [cross_entropy(each.float(), wanted, ignore_index=IGNORED, reduction="none") for each, wanted in pairs]
    return torch.cat(nll).view(targets.shape)


def token_divergence(logits: Tensor, own: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the distributions `own` at every token, in fp32.

    Args:
        logits, own: (tokens, vocabulary).

    Returns:
        (tokens,) in nats.
    """
    distances = [
        kl_div(*(part.float().log_softmax(-1) for part in pair), reduction="none", log_target=True).sum(-1)
        for pair in _chunks(logits, own)
    ]
    return torch.cat(distances)


def _chunks(logits: Tensor, others: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of logits with those that belong to them, so many at a time that they stay in a processor's cache.

    A backward pass would need all of them again.
    """
    rows = len(logits) if logits.requires_grad else rows_in_cache(logits.shape[1])
    return zip(logits.split(rows), others.split(rows), strict=True)


def rows_in_cache(vocabulary_size: int) -> int:
    """Rows of logits over a vocabulary of that size that a processor's cache holds, at least one."""
    return max(1, CHUNK_LOGITS // vocabulary_size)


def perplexity(nll: float) -> float:
    """exp of a mean negative log-likelihood in nats, infinite where that is too large for a number."""
    return math.exp(nll) if nll < 700 else math.inf
