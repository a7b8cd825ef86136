"""Distances that attention bridges, against plain loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.analysis.metrics import positions
from tests.analysis.metrics.maps import random_attention
from tests.tolerances import assert_close


@pytest.mark.parametrize(("queries", "keys", "causal"), [(1, 1, True), (7, 7, False), (5, 40, True), (1, 63, True)])
def test_profile_sums_the_mass_of_each_distance(queries: int, keys: int, causal: bool) -> None:
    values = random_attention(2, queries, keys, causal=causal)
    profile = positions.distance_profile(values)
    for head in range(2):
        sums = [0.0] * profile.shape[-1]
        for i in range(queries):
            for j in range(keys):
                sums[abs(keys - queries + i - j)] += float(values[head, i, j]) / queries
        assert profile[head].tolist() == pytest.approx(sums)
    assert_close(positions.distance_profile(values.float()), profile, torch.float32)


@given(st.integers(1, 8), st.integers(1, 60), st.integers(0, 50))
def test_bins_and_running_sums_lose_no_mass(queries: int, extra: int, seed: int) -> None:
    values = random_attention(2, queries, queries + extra, seed=seed, causal=True)
    profile = positions.distance_profile(values)
    binned = positions.binned_profile(profile)
    assert_close(binned.sum(-1), torch.ones(2).double())
    for number, (low, high) in enumerate(positions.distance_bin_bounds(33)):
        assert_close(binned[:, number], profile[:, low : high + 1].sum(-1))
    running = positions.cumulative_mass(profile)
    assert bool((running.diff(dim=-1) >= -1e-15).all())
    assert_close(running[:, -1], torch.ones(2).double())
    near, far = positions.distance_holding(profile, 80), positions.distance_holding(profile, 90)
    assert bool((near <= far).all())
    for head in range(2):
        place = int(far[head])
        assert float(running[head, place]) >= 0.9 - 1e-9
        assert place == 0 or float(running[head, place - 1]) < 0.9


@given(st.integers(0, 2**40))
def test_bin_holds_its_distance(distance: int) -> None:
    number = int(positions.distance_bin(torch.tensor([distance])))
    low, high = positions.distance_bin_bounds(number + 1)[number]
    assert low <= distance <= high


@pytest.mark.parametrize("power", range(1, 40))
def test_bins_begin_at_powers_of_two(power: int) -> None:
    assert positions.distance_bin(torch.tensor([2**power - 1, 2**power])).tolist() == [power, power + 1]


def test_recent_and_distant_share_the_mass() -> None:
    values = random_attention(2, 6, 50, causal=True)
    recent, distant = positions.recent_and_distant(values, 10)
    for head in range(2):
        for i in range(6):
            near = sum(float(values[head, i, j]) for j in range(50) if abs(44 + i - j) < 10)
            assert float(recent[head, i]) == pytest.approx(near)
    assert_close(recent + distant, torch.ones(2, 6).double())


def test_nothing_to_hold() -> None:
    nothing = torch.zeros(2, 5)
    assert positions.distance_holding(nothing, 90).tolist() == [-1, -1]
    assert torch.isnan(positions.cumulative_mass(nothing)).all()


@pytest.mark.parametrize("percent", [0, -5, 101, math.nan])
def test_percentage_out_of_range(percent: float) -> None:
    with pytest.raises(ValueError, match="percent must be in"):
        positions.distance_holding(torch.ones(3), percent)


def test_too_few_bins() -> None:
    with pytest.raises(ValueError, match="bins must be at least 5 for 9 distances; got 4"):
        positions.binned_profile(torch.ones(9), 4)
