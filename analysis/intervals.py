"""95 % intervals: Wilson's for proportions, the bootstrap for means."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike

_Z_95 = 1.959963984540054
_RESAMPLES = 2000


def wilson_interval(correct: int, samples: int) -> tuple[float, float]:
    """Returns the 95 % score interval of a proportion.

    Args:
        correct: successes, in [0, samples].
        samples: trials, at least 1.

    Returns:
        Lower and upper bound, in [0, 1].

    Raises:
        ValueError: the counts are out of range.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
        Journal of the American Statistical Association 22 (1927).
    """
    if samples < 1 or not 0 <= correct <= samples:
        raise ValueError(
            "correct must be in [0, samples] and samples at least 1, "
            f"got correct={correct} and samples={samples}; count them anew"
        )
    share, z2 = correct / samples, _Z_95 * _Z_95
    center = (share + z2 / (2 * samples)) / (1 + z2 / samples)
    half = _Z_95 * sqrt(share * (1 - share) / samples + z2 / (4 * samples * samples)) / (1 + z2 / samples)
    # The bounds at 0 and all are exact; rounding must not move them past the proportion.
    low = 0.0 if correct == 0 else center - half
    high = 1.0 if correct == samples else center + half
    return low, high


def bootstrap_interval(values: ArrayLike, generator: np.random.Generator | None = None) -> tuple[float, float]:
    """Returns the 95 % percentile bootstrap interval of a mean.

    Args:
        values: ``[samples]``, independent of each other, at least 2 and finite.
        generator: source of randomness; None: always the same one, so that the interval is fixed by the values.

    Returns:
        Lower and upper bound, in the values' unit.

    Raises:
        ValueError: fewer than two values, more than one axis, or values that are not finite.

    Source: B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7 (1979).
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size < 2 or not np.isfinite(array).all():
        raise ValueError(
            "values must be at least two finite numbers along one axis; "
            f"got shape {array.shape}{'' if np.isfinite(array).all() else ' with values that are not finite'}. "
            "Measure more samples."
        )
    generator = np.random.default_rng(0) if generator is None else generator
    means = array[generator.integers(array.size, size=(_RESAMPLES, array.size))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def score_interval(scores: Sequence[float]) -> tuple[float, float] | None:
    """Returns the 95 % interval of a mean score.

    Args:
        scores: in [0, 1], one per sample.

    Returns:
        Wilson's interval where every score is 0 or 1, else the bootstrap's; None where a single score, neither 0 nor
        1, leaves nothing to resample.

    Raises:
        ValueError: no scores.
    """
    if all(score in (0, 1) for score in scores):
        return wilson_interval(round(sum(scores)), len(scores))
    return bootstrap_interval(scores) if len(scores) > 1 else None
