"""Means of intervals, and differences between rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.analysis.intervals import wilson_interval
from kvcompress.bench.sweep.estimates import Estimate, estimate, mean_of, score_difference
from tests.bench.sweep.rows import make_row

SHARES = st.floats(0, 1)
ESTIMATES = st.tuples(SHARES, SHARES, SHARES).map(sorted).map(lambda x: Estimate(mean=x[1], low=x[0], high=x[2]))
SCORES = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=12).map(tuple)


@given(estimates=st.lists(ESTIMATES, min_size=1, max_size=6))
def test_mean_lies_inside_its_interval_which_is_no_wider_than_the_mean_of_intervals(estimates: list[Estimate]) -> None:
    mean = mean_of(estimates)
    assert mean.mean == pytest.approx(np.mean([one.mean for one in estimates]))
    assert np.mean([one.low for one in estimates]) - 1e-12 <= mean.low <= mean.mean + 1e-12
    assert mean.mean - 1e-12 <= mean.high <= np.mean([one.high for one in estimates]) + 1e-12


def test_mean_of_equal_intervals_shrinks_with_the_root_of_their_number() -> None:
    mean = mean_of([Estimate(mean=0.5, low=0.4, high=0.7)] * 4)
    assert (mean.low, mean.high) == (pytest.approx(0.45), pytest.approx(0.6))


def test_interval_of_a_mean_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truths, samples, rounds = np.array([0.99, 0.7, 0.2]), 50, 1000
    held = 0
    for counts in rng.binomial(samples, truths, size=(rounds, 3)):
        mean = mean_of([estimate(count / samples, wilson_interval(int(count), samples)) for count in counts])
        held += mean.low <= truths.mean() <= mean.high
    assert 0.93 <= held / rounds <= 0.98


@given(scores=SCORES)
def test_rows_of_equal_scores_do_not_differ(scores: tuple[float, ...]) -> None:
    assert score_difference(make_row(scores), make_row(scores)) == Estimate(mean=0.0, low=0.0, high=0.0)


@given(first=SCORES, second=SCORES)
def test_difference_turns_its_sign_with_the_order(first: tuple[float, ...], second: tuple[float, ...]) -> None:
    forth = score_difference(make_row(first), make_row(second))
    back = score_difference(make_row(second), make_row(first))
    assert forth.mean == pytest.approx(-back.mean)
    assert forth.low <= forth.mean <= forth.high
    if len(first) != len(second):  # of the bootstrap only nearly
        assert (forth.low, forth.high) == (pytest.approx(-back.high), pytest.approx(-back.low))


def test_pairs_tell_more_than_two_intervals() -> None:
    before, after = (1.0,) * 20 + (0.0,) * 20, (1.0,) * 14 + (0.0,) * 26
    assert score_difference(make_row(before), make_row(after)).high < 0
    other_samples = score_difference(make_row(before), make_row(after, seed=1))
    assert other_samples.low < 0 < other_samples.high


def test_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        mean_of([])
