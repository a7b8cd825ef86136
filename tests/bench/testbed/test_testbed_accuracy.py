"""The Wilson interval, against known values and its laws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.analysis.intervals import wilson_interval


@pytest.mark.parametrize(
    ("correct", "samples", "low", "high"),
    [(200, 200, 0.9812, 1.0), (0, 200, 0.0, 0.0188), (100, 200, 0.4314, 0.5686), (1, 1, 0.2065, 1.0)],
)
def test_known_intervals(correct: int, samples: int, low: float, high: float) -> None:
    assert wilson_interval(correct, samples) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_holds_the_proportion_and_is_symmetric(counts: tuple[int, int]) -> None:
    correct, samples = counts
    low, high = wilson_interval(correct, samples)
    assert 0.0 <= low <= correct / samples <= high <= 1.0
    assert wilson_interval(samples - correct, samples) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("correct", "samples"), [(1, 0), (-1, 5), (6, 5)])
def test_counts_out_of_range_are_named(correct: int, samples: int) -> None:
    with pytest.raises(ValueError, match=f"got correct={correct} and samples={samples}; count"):
        wilson_interval(correct, samples)
