"""First and second moments of paired rows, summed batch by batch in double precision; closed forms need no more."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from itertools import chain, islice
from typing import NamedTuple, Union

import torch
from torch import Tensor

from registries.registry import UserError

Pairs = Union[Iterable[tuple[Tensor, Tensor]], "Statistics"]  # batches of paired rows, or their statistics

HELD_OUT = 10  # one batch of so many is held out


class Scatter(NamedTuple):
    """Sums of products about a centre: x'x (source, source), x'y (source, target), and the sum of y squared."""

    xx: Tensor
    xy: Tensor
    yy: Tensor


class Moments:
    """Sums over rows of x, y, x'x, x'y and y squared."""

    def __init__(self) -> None:
        self.rows = 0
        self.x = self.y = self.xx = self.xy = self.yy = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add a batch: (rows, source width) and (rows, target width)."""
        x, y = x.detach().double(), y.detach().double()
        self.rows += len(x)
        self.x, self.y = self.x + x.sum(0), self.y + y.sum(0)
        self.xx, self.xy, self.yy = self.xx + x.T @ x, self.xy + x.T @ y, self.yy + y.square().sum()

    def __add__(self, other: Moments) -> Moments:
        total = Moments()
        for name, value in vars(self).items():
            setattr(total, name, value + getattr(other, name))
        return total

    def means(self, centre: bool = True) -> tuple[Tensor, Tensor]:
        """The means of x and y; zeros if not `centre`."""
        factor = 1 / self.rows if centre else 0.0
        return self.x * factor, self.y * factor

    def about(self, x: Tensor, y: Tensor) -> Scatter:
        """The scatter about a centre: (source width,), (target width,)."""
        xx = self.xx - torch.outer(self.x, x) - torch.outer(x, self.x) + self.rows * torch.outer(x, x)
        xy = self.xy - torch.outer(self.x, y) - torch.outer(x, self.y) + self.rows * torch.outer(x, y)
        return Scatter(xx, xy, self.yy - 2 * self.y @ y + self.rows * y @ y)


class Statistics(NamedTuple):
    """The moments of the rows to fit on, and of the rows held out to choose a setting."""

    fitted: Moments
    held_out: Moments

    @property
    def everything(self) -> Moments:
        """The moments of all rows."""
        return self.fitted + self.held_out


class Gathering:
    """Gathers the statistics of paired rows, batch by batch.

    The last tenth of the batches is held out where their number is known, since distant batches come from other texts
    (a ridge that is chosen on blocks between those it is fitted on is ten times too weak for new documents); else every
    tenth batch. Of fewer than ten batches, the last tenth of the rows of each is held out.

    Args:
        batches: how many will be added; None: unknown, but at least ten.
    """

    def __init__(self, batches: int | None = None):
        self.batches, self.added, self.gathered = batches, 0, Statistics(Moments(), Moments())

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add a batch: (rows, source width) and (rows, target width)."""
        cut = self._cut(len(x))
        for moments, rows in zip(self.gathered, (slice(cut), slice(cut, None)), strict=True):
            if len(x[rows]):
                moments.add(x[rows], y[rows])
        self.added += 1

    def _cut(self, rows: int) -> int:
        """The index of the first row of the next batch that is held out."""
        if self.batches is None:
            return 0 if self.added % HELD_OUT == HELD_OUT - 1 else rows
        if self.batches < HELD_OUT:
            return rows - max(1, rows // HELD_OUT)
        return 0 if self.added >= self.batches - self.batches // HELD_OUT else rows

    def statistics(self) -> Statistics:
        """The statistics of all batches so far.

        Raises:
            UserError: there are fewer than 2 rows, or some are not finite.
        """
        fitted, held_out = self.gathered
        if not fitted.rows or not held_out.rows:
            rows = fitted.rows + held_out.rows
            raise UserError(f"an adapter is fitted on 2 paired rows at least, and there are {rows}: give it more text")
        everything = self.gathered.everything
        if not torch.isfinite(everything.yy + everything.xx.trace()):
            raise UserError(
                "hidden states with NaN or infinite values cannot be fitted: load the models in float32 (model.dtype, "
                "source.dtype)"
            )
        return self.gathered


def gather(pairs: Pairs) -> Statistics:
    """The statistics of paired rows, in one pass; statistics are returned as they are. Raises as `Gathering`."""
    if isinstance(pairs, Statistics):
        return pairs
    batches = len(pairs) if isinstance(pairs, Sized) else None
    pairs = iter(pairs)
    first = list(islice(pairs, HELD_OUT))
    gathering = Gathering(len(first) if len(first) < HELD_OUT else batches)
    for x, y in chain(first, pairs):
        gathering.add(x, y)
    return gathering.statistics()
