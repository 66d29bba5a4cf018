"""Metrics, as torchmetrics metrics: state that adds up over batches and processes."""

from lightning_modules.metrics.token_nll import TokenNLL, token_nll

__all__ = ["TokenNLL", "token_nll"]
