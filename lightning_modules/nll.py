"""The one loss of a language model, in training and in scoring."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORED = -100


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of each token given those before it, in fp32.

    This is the only place where labels are shifted: position t predicts token t + 1, and the first token of a row is
    never scored.

    Args:
        logits: (batch, length, vocabulary).
        labels: (batch, length) token ids, unshifted; -100 is not scored.

    Returns:
        (batch, length - 1) in nats; 0 where a token is not scored.
    """
    predictions, targets = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:]
    return cross_entropy(predictions, targets.flatten(), ignore_index=IGNORED, reduction="none").view(targets.shape)


def perplexity(nll: float) -> float:
    """exp of a mean negative log-likelihood in nats, infinite where that is too large for a number."""
    return math.exp(nll) if nll < 700 else math.inf
