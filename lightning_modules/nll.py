"""The one loss of a language model, in training and in scoring."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

IGNORED = -100
CHUNK_LOGITS = 2**21  # in fp32 at a time: what a processor's cache holds


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
    return target_nll(logits[:, :-1].flatten(0, 1), targets.flatten()).view(targets.shape)


def target_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of the target of every row, in fp32.

    Args:
        logits: (rows, vocabulary).
        targets: (rows,) token ids; -100 is not scored.

    Returns:
        (rows,) in nats; 0 where a target is not scored.
    """
    pairs = _in_cache(logits, targets)
    nll = [cross_entropy(piece.float(), ids, ignore_index=IGNORED, reduction="none") for piece, ids in pairs]
    return torch.cat(nll)


def token_divergence(logits: Tensor, own: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence from the distributions `own` at every token, in fp32.

    Args:
        logits, own: (tokens, vocabulary).
        temperature: divides both before the softmax.

    Returns:
        (tokens,) in nats.
    """

    def log_probabilities(part: Tensor) -> Tensor:
        return (part.float() / temperature).log_softmax(-1)

    distances = [
        kl_div(log_probabilities(part), log_probabilities(own_part), reduction="none", log_target=True).sum(-1)
        for part, own_part in _in_cache(logits, own)
    ]
    return torch.cat(distances)


def _in_cache(logits: Tensor, partner: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of logits with those that belong to them, so many at a time that they stay in a processor's cache.

    A GPU that trains takes all at once: it has no use for more and smaller kernels.
    """
    whole = logits.is_cuda and logits.requires_grad
    rows = len(logits) if whole else max(1, CHUNK_LOGITS // logits.shape[1])
    return zip(logits.split(rows), partner.split(rows), strict=True)
