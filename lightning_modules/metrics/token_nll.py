"""The one way a language model is scored, in training and in evaluation."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_modules.nll import IGNORED, perplexity, token_nll


class TokenNLL(Metric):
    """Loss, perplexity, bits per byte and accuracy over all scored tokens (sums first, then one division).

    `compute` gives `loss` (nats per token), `ppl` (exp(loss), by construction), `accuracy` (share of tokens that are
    the most likely one) and, where the tokens' bytes are known, `bpb` (bits per byte of the scored tokens).

    Args:
        token_bytes: (vocabulary,) UTF-8 bytes of each token.
    """

    full_state_update = False

    def __init__(self, token_bytes: Tensor | None = None):
        super().__init__(sync_on_compute=False)
        for name in ("nll", "tokens", "correct", "bytes"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.token_bytes = token_bytes

    def update(self, logits: Tensor, labels: Tensor, nll: Tensor | None = None) -> None:
        """Add a batch: logits (batch, length, vocabulary), labels (batch, length) unshifted, -100 not scored.

        `nll` may hand over what `token_nll` gave for them, so that it is not computed twice.
        """
        nll = token_nll(logits, labels) if nll is None else nll
        targets = labels[:, 1:]
        scored = targets != IGNORED
        self.nll += nll.double().sum()
        self.tokens += scored.sum()
        best = logits[:, :-1].max(-1).indices  # argmax, which takes three times as long in bf16
        self.correct += ((best == targets) & scored).sum()
        if self.token_bytes is not None:
            self.bytes += self.token_bytes.to(targets.device)[targets[scored]].sum()

    def compute(self) -> dict[str, float]:
        """The scores of everything that was added."""
        nll, tokens = self.nll.item(), self.tokens.item()
        if not tokens:
            raise ValueError("no token was scored: every label is -100, or every row has one token")
        scores = {"loss": nll / tokens, "ppl": perplexity(nll / tokens), "accuracy": self.correct.item() / tokens}
        if self.bytes.item():
            scores["bpb"] = nll / math.log(2) / self.bytes.item()
        return scores
