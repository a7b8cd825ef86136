"""Laws of the layer budgets."""

import heapq
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.policies.cake_reference import reference_budgets
from kvcompress.policies.layer_allocators import Preference, Uniform, apportion, log_preference
from kvcompress.policies.protocols import LayerDemand

logs = st.one_of(st.floats(-60, 60), st.just(-math.inf), st.sampled_from([0.0, 1.0]))
layers = st.lists(st.tuples(logs, st.integers(0, 300)), min_size=1, max_size=12)


def seat_by_seat(log_weights: list[float], total: int, caps: list[int]) -> list[int]:
    """The definition: give one seat after the other to the highest priority."""
    weights = [max(w, -1e4) for w in log_weights]
    seats = [0] * len(weights)
    queue = [(-w, i) for i, w in enumerate(weights) if caps[i] > 0]
    heapq.heapify(queue)
    for _ in range(min(total, sum(caps))):
        _, i = heapq.heappop(queue)
        seats[i] += 1
        if seats[i] < caps[i]:
            heapq.heappush(queue, (math.log(seats[i] + 1) - weights[i], i))
    return seats


@given(layers, st.integers(0, 2000))
def test_equals_the_definition(entries, total) -> None:
    weights, caps = [w for w, _ in entries], [c for _, c in entries]
    assert apportion(weights, total, caps) == seat_by_seat(weights, total, caps)


@given(layers, st.integers(0, 2000))
def test_sum_is_exact_and_caps_hold(entries, total) -> None:
    weights, caps = [w for w, _ in entries], [c for _, c in entries]
    seats = apportion(weights, total, caps)
    assert sum(seats) == min(total, sum(caps))
    assert all(0 <= s <= c for s, c in zip(seats, caps, strict=True))


@given(layers, st.integers(0, 2000), logs, st.integers(0, 300))
def test_adding_a_layer_never_raises_another(entries, total, weight, cap) -> None:
    weights, caps = [w for w, _ in entries], [c for _, c in entries]
    before = apportion(weights, total, caps)
    after = apportion([*weights, weight], total, [*caps, cap])
    assert all(a <= b for a, b in zip(after, before, strict=False))


@given(layers, st.integers(0, 2000), st.integers(0, 50))
def test_a_larger_total_never_lowers_a_budget(entries, total, more) -> None:
    weights, caps = [w for w, _ in entries], [c for _, c in entries]
    small, large = apportion(weights, total, caps), apportion(weights, total + more, caps)
    assert all(a <= b for a, b in zip(small, large, strict=True))


def test_many_layers_and_tokens_are_exact() -> None:
    weights = [math.sin(i) * 3 for i in range(80)]
    seats = apportion(weights, 80 * 8192, [100_000] * 80)
    assert sum(seats) == 80 * 8192
    shares = [math.exp(w) for w in weights]
    for seat, share in zip(seats, shares, strict=True):
        assert abs(seat - share / sum(shares) * 80 * 8192) <= 80


def test_layers_without_preference_share_evenly() -> None:
    assert apportion([-math.inf] * 4, 10, [100] * 4) == [3, 3, 2, 2]


def demand(budget, caps, entropy=None, variance=None, layers=None) -> LayerDemand:
    return LayerDemand(
        layers=layers or len(caps), budget=budget, entropy=entropy, variance=variance, caps=tuple(caps),
        tokens=max(caps) + 8, window_size=8,
    )  # fmt: skip


def test_uniform_and_its_room() -> None:
    assert Uniform()(demand(10, [4, 20])) == [4, 10]
    assert Uniform()(demand(None, [4, 20])) == [4, 20]
    assert Uniform().limits(demand(10, [4, 20]), [4, 10]) == [10, 10]


def test_preference_follows_entropy_and_variance() -> None:
    allocator = Preference(tau1=2.0, tau2=0.5)
    asked = demand(100, [1000] * 3, entropy=(1.0, 4.0, 4.0), variance=(1.0, 1.0, 2.0))
    weights = [1.0, 2.0, 8.0]
    got = allocator(asked)
    assert sum(got) == 300
    assert all(abs(g - w / 11 * 300) <= 1 for g, w in zip(got, weights, strict=True))
    exact = allocator.preference(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(exact, torch.tensor([1.0, 8.0]))
    assert math.isclose(log_preference(4.0, 2.0, 2.0, 0.5), math.log(8.0))


def test_one_window_query_has_no_variance_and_entropy_decides() -> None:
    assert log_preference(4.0, math.nan, 2.0, 0.5) == pytest.approx(math.log(2.0))


def test_short_prompt_leaves_room_shared_evenly() -> None:
    allocator = Preference(tau1=1.0, tau2=1.0)
    asked = demand(100, [7, 7, 7], entropy=(1.0, 2.0, 3.0), variance=(1.0, 1.0, 1.0))
    budgets = allocator(asked)
    assert budgets == [7, 7, 7]
    assert allocator.limits(asked, budgets) == [100, 100, 100]


def test_reference_allocation_by_hand() -> None:
    """Raw shares 180, 60, 60 of 300, cap 100: the excess of 80 goes to the two below the cap, 40 each."""
    import numpy as np

    assert reference_budgets(np.array([3.0, 1.0, 1.0]), 300, 100) == [100, 100, 100]
    assert reference_budgets(np.array([3.0, 1.0, 1.0]), 100, 1000) == [60, 20, 20]
    assert reference_budgets(np.array([1.0, 1.0, 1.0]), 100, 1000) == [34, 33, 33]
