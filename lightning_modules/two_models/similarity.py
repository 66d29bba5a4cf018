"""How near translated hidden states come to the true ones, on held-out rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from data_modules.randomness import generator
from lightning_modules.metrics import LinearCKA

CANDIDATES = 500


def similarity(translated: Tensor, target: Tensor, documents: Tensor) -> dict[str, float]:
    """Measures of likeness of paired rows; each is left out where it is not defined (translated rows all equal).

    Args:
        translated: (rows, width), what an adapter made of the source's states.
        target: (rows, width), the target's own states.
        documents: (rows,), the number of the document that each row is of.

    Returns:
        `r2`: 1 - squared error / variance, over all channels; `cosine`: mean cosine of the centred rows;
        `retrieval_at_1`: share of rows whose nearest true state (cosine, centred) among those of `retrieval_rows` rows,
        of as many documents as there are, is their own (by chance 1 / retrieval_rows); `cka`: unbiased linear CKA, and
        `cka_chance`, that of rows paired at random; `cka_rows`: how many.
    """
    translated, target = translated.double(), target.double()
    y = target - target.mean(0)
    values = {"r2": 1 - ((translated - target).square().sum() / y.square().sum()).item(), "cka_rows": len(y)}
    x = translated - translated.mean(0)
    if x.square().sum() <= 1e-12 * translated.square().sum():
        return values
    values["cosine"] = (normalize(x, dim=1) * normalize(y, dim=1)).sum(1).mean().item()
    chosen = spread_over_documents(documents, CANDIDATES)
    likeness = normalize(x[chosen], dim=1) @ normalize(y[chosen], dim=1).T
    retrieved = likeness.diagonal() >= likeness.amax(1)  # the same token may have the same state in two places
    values["retrieval_at_1"] = retrieved.double().mean().item()
    values["retrieval_rows"] = len(chosen)
    shuffled = torch.randperm(len(y), generator=generator("chance", 0))
    return values | {"cka": _cka(x, y), "cka_chance": _cka(x, y[shuffled])}


def spread_over_documents(documents: Tensor, count: int) -> Tensor:
    """Numbers of at most `count` rows, drawn at random, each document giving its next one only after all others."""
    order = torch.randperm(len(documents), generator=generator("retrieval", 0))
    _, inverse = documents[order].unique(return_inverse=True)
    turns = torch.zeros_like(order)
    for document in range(int(inverse.max()) + 1):
        rows = (inverse == document).nonzero()[:, 0]
        turns[rows] = torch.arange(len(rows))
    return order[turns.argsort(stable=True)[:count]].sort().values


def _cka(x: Tensor, y: Tensor) -> float:
    metric = LinearCKA()
    metric.update(x, y)
    return metric.compute().item()
