"""The one way a language model is scored, in training and in evaluation."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_modules.nll import IGNORED, token_nll
from lightning_modules.perplexity import perplexity


class TokenNLL(Metric):
    """Loss, perplexity, bits per byte and accuracy over all scored tokens (sums first, then one division).

    `compute` gives `loss` (nats per token), `ppl` (exp(loss), by construction), `accuracy` (share of tokens that are
    the most likely one) and, where the tokens' bytes are known, `bpb` (bits per byte of the scored tokens).

    Of a vocabulary in which words can be unknown, `compute` also gives `unknown_rate` (share of the tokens that stand
    for an unknown word), `ppl_known` (perplexity of the other tokens) and `majority_accuracy` (of always guessing the
    commonest of the scored tokens). Whoever is to write the text must spell its unknown words too: that costs 8 bits
    for each of their bytes, which `bpb` includes, so that it compares with vocabularies that know every word.

    Args:
        token_bytes: (vocabulary,) UTF-8 bytes of each token; of the unknown word's, on the average.
        unknown: the token that stands for unknown words; None: no word is unknown.
    """

    full_state_update = False

    def __init__(self, token_bytes: Tensor | None = None, unknown: int | None = None):
        super().__init__(sync_on_compute=False)
        for name in ("nll", "tokens", "correct", "bytes", "unknown_nll"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.token_bytes, self.unknown = token_bytes, unknown
        vocabulary = 0 if unknown is None else len(token_bytes)
        self.add_state("counts", torch.zeros(vocabulary, dtype=torch.int64), dist_reduce_fx="sum")

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
        if self.unknown is not None:
            self.counts += torch.bincount(targets[scored], minlength=len(self.counts))
            self.unknown_nll += nll[targets == self.unknown].double().sum()

    def compute(self) -> dict[str, float]:
        """The scores of everything that was added."""
        nll, tokens = self.nll.item(), self.tokens.item()
        if not tokens:
            raise ValueError("no token was scored: every label is -100, or every row has one token")
        scores = {"loss": nll / tokens, "ppl": perplexity(nll / tokens), "accuracy": self.correct.item() / tokens}
        spelling = 0.0
        if self.unknown is not None:
            unknown = self.counts[self.unknown].item()
            spelling = 8 * unknown * self.token_bytes[self.unknown].item()
            known = tokens - unknown
            scores["unknown_rate"] = unknown / tokens
            scores["majority_accuracy"] = self.counts.max().item() / tokens
            scores["ppl_known"] = perplexity((nll - self.unknown_nll.item()) / known) if known else math.nan
        if self.bytes.item():
            scores["bpb"] = (nll / math.log(2) + spelling) / self.bytes.item()
        return scores
