"""Losses by document, for comparisons of two models on the same documents."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_modules.nll import IGNORED


class DocumentNLL(Metric):
    """Summed negative log-likelihood and scored tokens of every document.

    Blocks hold pieces of several documents; the tokens of one document depend on each other, those of two do not. So
    documents are what a confidence interval counts.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)
        self.add_state("documents", [], dist_reduce_fx="cat")
        self.add_state("nll", [], dist_reduce_fx="cat")

    def update(self, nll: Tensor, labels: Tensor, documents: Tensor) -> None:
        """Add a batch.

        Args:
            nll: (batch, length - 1), what `token_nll` gives.
            labels: (batch, length), unshifted; -100 is not scored.
            documents: (batch, length), which document each token is of.
        """
        scored = labels[:, 1:] != IGNORED
        self.documents.append(documents[:, 1:][scored])
        self.nll.append(nll[scored].double())

    def compute(self) -> list[tuple[float, int]]:
        """(summed nll in nats, scored tokens) per document, by its number; documents without any are left out."""
        if not len(self.documents):
            return []
        joined = (torch.cat(state) if isinstance(state, list) else state for state in (self.documents, self.nll))
        documents, nll = joined
        _, document, tokens = documents.unique(return_inverse=True, return_counts=True)
        sums = torch.zeros(len(tokens), dtype=torch.float64, device=nll.device).index_add(0, document, nll)
        return list(zip(sums.tolist(), tokens.tolist(), strict=True))
