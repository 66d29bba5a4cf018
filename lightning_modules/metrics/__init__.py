"""Metrics, as torchmetrics metrics: state that adds up over batches. What a process scores, it scores whole."""

from lightning_modules.metrics.document_nll import DocumentNLL
from lightning_modules.metrics.linear_cka import LinearCKA
from lightning_modules.metrics.token_nll import TokenNLL

__all__ = ["DocumentNLL", "LinearCKA", "TokenNLL"]
