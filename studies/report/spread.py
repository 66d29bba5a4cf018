"""Whether settings of a sweep are told apart by the spread over seeds that was measured in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from studies.run.ratios import CONFIDENCE


@dataclass(frozen=True)
class Spread:
    """The standard deviation over seeds, of all settings of a sweep together.

    Attributes:
        sigma: the square root of the variances within settings, weighted by their degrees of freedom.
        degrees: of freedom: runs without the number of settings.
    """

    sigma: float
    degrees: int

    @classmethod
    def of(cls, settings: Iterable[Sequence[float]]) -> Spread | None:
        """The spread of the values of settings, one for each seed; None where no setting has two seeds."""
        repeated = [values for values in settings if len(values) > 1]
        degrees = sum(len(values) - 1 for values in repeated)
        if not degrees:
            return None
        squares = sum(variance(values) * (len(values) - 1) for values in repeated)
        return cls(math.sqrt(squares / degrees), degrees)

    def least_difference(self, seeds: int, other_seeds: int) -> float:
        """The smallest difference of the means of so many seeds that is told apart, by Student's t."""
        from scipy.stats import t

        return t.ppf((1 + CONFIDENCE) / 2, self.degrees) * self.sigma * math.sqrt(1 / seeds + 1 / other_seeds)

    def tells_apart(self, values: Sequence[float], others: Sequence[float]) -> bool:
        """Whether the means of the values of two settings differ by more than the seeds explain."""
        difference = abs(fmean(values) - fmean(others))
        return difference > self.least_difference(len(values), len(others))
