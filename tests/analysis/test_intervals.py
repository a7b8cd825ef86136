"""Intervals: known values, coverage, and what cannot have one."""

import numpy as np
import pytest

from kvcompress.analysis.intervals import bootstrap_interval, score_interval, wilson_interval


def test_bootstrap_is_near_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert (low, high) == bootstrap_interval(values)


def test_bootstrap_covers_the_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(generator.exponential(1.0, size=60))
        covered += low <= 1.0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_bootstrap_of_equal_values_is_a_point() -> None:
    assert bootstrap_interval([0.25, 0.25, 0.25]) == (0.25, 0.25)


@pytest.mark.parametrize("values", [[], [1.0], [[1.0, 2.0]], [1.0, float("nan")]])
def test_too_little_to_resample_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values must be at least two finite numbers"):
        bootstrap_interval(values)


def test_scores_take_the_interval_that_fits_them() -> None:
    assert score_interval([1.0, 0.0, 1.0]) == wilson_interval(2, 3)
    assert score_interval([1.0, 0.5]) == bootstrap_interval([1.0, 0.5])
    assert score_interval([0.5]) is None
