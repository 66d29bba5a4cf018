"""Linear centred kernel alignment: how alike two sets of representations are, up to rotation, scale and shift."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

LEAST_ROWS = 4


class LinearCKA(Metric):
    """The unbiased estimate of linear CKA in double precision (Kornblith et al., 2019; Nguyen et al., 2021).

    It is 1 for representations that differ by a rotation, a scale and a shift, and 0 on average for independent ones,
    however few rows there are (so it may be negative); the usual estimate tends to 1 where rows are few.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)
        self.add_state("x", [], dist_reduce_fx="cat")
        self.add_state("y", [], dist_reduce_fx="cat")

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add a batch of paired rows: (rows, width of x) and (rows, width of y)."""
        if len(x) != len(y):
            raise ValueError(f"x has {len(x)} rows and y has {len(y)}: rows are paired")
        self.x.append(x.detach())
        self.y.append(y.detach())

    def compute(self) -> Tensor:
        """The estimate; NaN where all rows of x or of y are equal.

        Raises:
            ValueError: there are fewer than 4 rows, or a value is not finite.
        """
        x, y = (_centred(state) for state in (self.x, self.y))
        return unbiased_hsic(x, y) / (unbiased_hsic(x, x).clamp(min=0) * unbiased_hsic(y, y).clamp(min=0)).sqrt()


def unbiased_hsic(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased estimate of the Hilbert-Schmidt independence criterion with linear kernels.

    With K = x x' and L = y y' without their diagonals, and n rows (Song et al., 2012, equation 5):
    [tr(KL) + 1'K1 1'L1 / ((n - 1)(n - 2)) - 2 / (n - 2) 1'KL1] / (n (n - 3)).

    Args:
        x: (rows, width of x), in double precision. The estimate does not depend on the means, its rounding does.
        y: (rows, width of y).
    """
    n = len(x)
    wide = x.shape[1] * y.shape[1] > n * n
    product = (x @ x.T * (y @ y.T)).sum() if wide else (x.T @ y).square().sum()
    x_squares, y_squares = x.square().sum(1), y.square().sum(1)
    trace = product - x_squares @ y_squares
    x_sums, y_sums = x @ x.sum(0) - x_squares, y @ y.sum(0) - y_squares  # K1 and L1
    between = x_sums.sum() * y_sums.sum() / ((n - 1) * (n - 2))
    return (trace + between - 2 / (n - 2) * (x_sums @ y_sums)) / (n * (n - 3))


def _centred(state: list[Tensor] | Tensor) -> Tensor:
    rows = (torch.cat(state) if isinstance(state, list) and state else torch.as_tensor(state)).double()
    if len(rows) < LEAST_ROWS:
        raise ValueError(f"unbiased CKA needs {LEAST_ROWS} rows at least, and there are {len(rows)}")
    if not torch.isfinite(rows).all():
        raise ValueError("CKA of values that are not finite")
    return rows - rows.mean(0)
