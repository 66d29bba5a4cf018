"""First and second moments of paired rows, summed batch by batch in double precision: all that closed forms need."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from itertools import chain, islice
from typing import NamedTuple, Union

import torch
from torch import Tensor

from registries.registry import UserError

Pairs = Union[Iterable[tuple[Tensor, Tensor]], "Statistics"]  # batches of rows, or what was gathered of them

HELD_OUT = 10  # one of so many


class Scatter(NamedTuple):
    """Sums of products about a centre: x'x (source, source), x'y (source, target), and the total of y squared."""

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
        """The means of x and y; zeros where nothing is to be centred."""
        factor = 1 / self.rows if centre else 0.0
        return self.x * factor, self.y * factor

    def about(self, x: Tensor, y: Tensor) -> Scatter:
        """The scatter about a centre: (source width,), (target width,)."""
        xx = self.xx - torch.outer(self.x, x) - torch.outer(x, self.x) + self.rows * torch.outer(x, x)
        xy = self.xy - torch.outer(self.x, y) - torch.outer(x, self.y) + self.rows * torch.outer(x, y)
        return Scatter(xx, xy, self.yy - 2 * self.y @ y + self.rows * y @ y)


class Statistics(NamedTuple):
    """The moments of the rows to fit on, and of those held out to choose a setting on."""

    fitted: Moments
    held_out: Moments

    @property
    def everything(self) -> Moments:
        """The moments of all rows."""
        return self.fitted + self.held_out


class Gathering:
    """Statistics in the making.

    The last tenth of the batches is held out where their number is known, since batches that lie apart are of other
    texts (a ridge that is chosen on blocks between those it is fitted on is ten times too weak for new documents);
    else every tenth. Of fewer than ten batches, it is the last tenth of the rows of each.

    Args:
        batches: how many will be added; None: unknown, and ten or more.
    """

    def __init__(self, batches: int | None = None):
        self.batches, self.added, self.found = batches, 0, Statistics(Moments(), Moments())

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add a batch: (rows, source width) and (rows, target width)."""
        cut = self._cut(len(x))
        for part, rows in ((self.found.fitted, slice(cut)), (self.found.held_out, slice(cut, None))):
            if len(x[rows]):
                part.add(x[rows], y[rows])
        self.added += 1

    def _cut(self, rows: int) -> int:
        """Where the rows of the next batch begin that are held out."""
        if self.batches is None:
            return 0 if self.added % HELD_OUT == HELD_OUT - 1 else rows
        if self.batches < HELD_OUT:
            return rows - max(1, rows // HELD_OUT)
        return 0 if self.added >= self.batches - self.batches // HELD_OUT else rows

    def statistics(self) -> Statistics:
        """What was gathered.

        Raises:
            UserError: there are no rows, or some are not finite.
        """
        found = self.found
        if not found.fitted.rows or not found.held_out.rows:
            rows = found.fitted.rows + found.held_out.rows
            raise UserError(f"an adapter is fitted on 2 paired rows at least, and there are {rows}: give it more text")
        if not torch.isfinite(found.everything.yy + found.everything.xx.trace()):
            raise UserError(
                "hidden states with NaN or infinite values cannot be fitted: load the models in float32 (model.dtype, "
                "source.dtype)"
            )
        return found


def gather(pairs: Pairs) -> Statistics:
    """The statistics of paired rows, in one pass; what is gathered already is handed on. Raises as `Gathering`."""
    if isinstance(pairs, Statistics):
        return pairs
    batches = len(pairs) if isinstance(pairs, Sized) else None
    pairs = iter(pairs)
    first = list(islice(pairs, HELD_OUT))
    found = Gathering(len(first) if len(first) < HELD_OUT else batches)
    for x, y in chain(first, pairs):
        found.add(x, y)
    return found.statistics()
