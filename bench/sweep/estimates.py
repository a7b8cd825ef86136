"""Figures with 95 % intervals, their means, and differences between rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from kvcompress.analysis.intervals import bootstrap_interval
from kvcompress.bench.sweep.row import Interval, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure and its 95 % interval; without one (a single sample) both ends are the figure."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def estimate(mean: float, interval: Interval | None) -> Estimate:
    """An estimate of a figure and its interval, None where it has none."""
    low, high = (mean, mean) if interval is None else interval
    return Estimate(mean=mean, low=min(low, mean), high=max(high, mean))


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, each weighing the same.

    The distances to the lower ends are added up as standard errors are, and so are those to the upper ends: intervals
    that are not symmetric, as near 0 or 1, stay so.

    Args:
        estimates: at least one.

    Source: G. Y. Zou, A. Donner, "Construction of confidence limits about effect measures: a general approach",
        Statistics in Medicine 27 (2008).
    """
    count = len(estimates)
    if not count:
        raise ValueError("estimates must hold at least one to have a mean; got none")
    mean = sum(one.mean for one in estimates) / count
    below = sqrt(sum((one.mean - one.low) ** 2 for one in estimates)) / count
    above = sqrt(sum((one.high - one.mean) ** 2 for one in estimates)) / count
    return Estimate(mean=mean, low=mean - below, high=mean + above)


def score_of(row: Row) -> Estimate:
    """A row's score."""
    return estimate(row.score, row.ci95)


def score_difference(first: Row, second: Row) -> Estimate:
    """The second score minus the first.

    Rows of the same samples are compared sample by sample (bootstrap over samples), which tells more than two
    intervals: a sample that is hard for one is hard for the other. Other rows count as independent.
    """
    if _same_samples(first, second) and len(first.scores) > 1:
        differences = [after - before for before, after in zip(first.scores, second.scores, strict=True)]
        return estimate(sum(differences) / len(differences), bootstrap_interval(differences))
    before, after = score_of(first), score_of(second)
    mean = after.mean - before.mean
    return Estimate(
        mean=mean,
        low=mean - sqrt((after.mean - after.low) ** 2 + (before.high - before.mean) ** 2),
        high=mean + sqrt((after.high - after.mean) ** 2 + (before.mean - before.low) ** 2),
    )


def _same_samples(first: Row, second: Row) -> bool:
    names = ("task", "task_parameters", "length", "n", "seed")
    return all(getattr(first.cell, name) == getattr(second.cell, name) for name in names)
