"""Laws of the allocators that look at scores: exact sums, caps, and that nothing grows as layers come in."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.policies.head_allocators import AdaptiveHeads
from kvcompress.policies.layer_allocators import GlobalScores, Pyramid, apportion
from kvcompress.policies.protocols import LayerDemand

# Few distinct values, so that ties are common; infinities are sinks and places without a token.
values = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 2.0, math.inf, -math.inf])
fractions = st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9, 1.0])


@st.composite
def layer_of_scores(draw, heads: int = 3, most: int = 14) -> torch.Tensor:
    count = draw(st.integers(0, most))
    rows = draw(st.lists(st.lists(values, min_size=count, max_size=count), min_size=heads, max_size=heads))
    return torch.tensor(rows)


def available(scores: torch.Tensor) -> torch.Tensor:
    return (scores > -math.inf).sum(-1)


def head_shares(scores: torch.Tensor, budget: int, floor: float) -> list[int]:
    shares = AdaptiveHeads(floor=floor)(scores[None], torch.tensor([budget]))
    return [int(n) for n in shares[0]]


def best_prefix(scores: torch.Tensor, held: list[int]) -> torch.Tensor:
    """What the store holds: each head's best, best first, nothing behind."""
    ordered = scores.sort(-1, descending=True).values
    return ordered.masked_fill(torch.arange(scores.shape[-1]) >= torch.tensor(held)[:, None], -math.inf)


class TestAdaptiveHeads:
    @given(layer_of_scores(), st.integers(0, 14), fractions)
    def test_sum_is_exact_and_caps_hold(self, scores, budget, floor) -> None:
        shares = head_shares(scores, budget, floor)
        assert sum(shares) == min(budget * 3, int(available(scores).sum()))
        assert all(0 <= n <= cap for n, cap in zip(shares, available(scores).tolist(), strict=True))

    @given(layer_of_scores(), st.integers(0, 14), fractions)
    def test_every_head_gets_its_floor(self, scores, budget, floor) -> None:
        scores = scores.nan_to_num(posinf=3.0)
        sure = math.floor(floor * budget)
        for n, cap in zip(head_shares(scores, budget, floor), available(scores).tolist(), strict=True):
            assert n >= min(sure, cap)

    @given(layer_of_scores(), st.integers(0, 13), fractions)
    def test_a_larger_budget_never_lowers_a_share(self, scores, budget, floor) -> None:
        small, large = (head_shares(scores, n, floor) for n in (budget, budget + 1))
        assert all(a <= b for a, b in zip(small, large, strict=True))

    @given(layer_of_scores(), st.integers(0, 14), st.integers(0, 14), fractions)
    def test_a_trim_shares_as_one_shot_does(self, scores, first, second, floor) -> None:
        large, small = max(first, second), min(first, second)
        held = head_shares(scores, large, floor)
        assert head_shares(best_prefix(scores, held), small, floor) == head_shares(scores, small, floor)

    @given(layer_of_scores(), st.integers(0, 14))
    def test_without_a_floor_the_best_scores_of_all_heads_are_kept(self, scores, budget) -> None:
        shares = head_shares(scores, budget, 0.0)
        kept = sorted(v for row in best_prefix(scores, shares).tolist() for v in row if v > -math.inf)
        total = min(budget * 3, int(available(scores).sum()))
        assert kept == sorted(scores.flatten().tolist())[scores.numel() - total :]

    @given(layer_of_scores(), layer_of_scores(), st.integers(0, 14), st.integers(0, 14), fractions)
    def test_rows_of_a_batch_are_independent(self, first, second, one, other, floor) -> None:
        count = max(first.shape[-1], second.shape[-1])
        padded = [torch.nn.functional.pad(s, (count - s.shape[-1], 0), value=-math.inf) for s in (first, second)]
        both = AdaptiveHeads(floor=floor)(torch.stack(padded), torch.tensor([one, other]))
        assert both.tolist() == [head_shares(first, one, floor), head_shares(second, other, floor)]

    def test_a_floor_gives_no_place_to_what_is_not_there(self) -> None:
        """A head with fewer tokens than the floor leaves its places to the others."""
        scores = torch.tensor([[0.5, -math.inf, -math.inf, -math.inf], [0.4, 0.3, 0.2, 0.1]])
        assert head_shares(scores, 2, 1.0) == [1, 3]

    def test_nan_counts_as_the_least_score_of_a_token(self) -> None:
        scores = torch.tensor([[math.nan, 1.0], [-math.inf, 0.5]])
        assert AdaptiveHeads(floor=0.0)(scores[None], torch.tensor([1])).tolist() == [[1, 1]]
        assert AdaptiveHeads(floor=0.0)(scores[None], torch.tensor([2])).tolist() == [[2, 1]]

    def test_needs_scores(self) -> None:
        with pytest.raises(ValueError, match="by token scores"):
            AdaptiveHeads()(None, torch.tensor([1]))


ladders = st.lists(
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.7, 1.0, math.inf]), min_size=0, max_size=20).map(
        lambda steps: sorted(steps, reverse=True)
    ),
    min_size=1,
    max_size=6,
)


def demand(steps: list[list[float]], budget: int, layers: int, caps: list[int] | None = None) -> LayerDemand:
    return LayerDemand(
        layers=layers, budget=budget, entropy=None, variance=None, caps=tuple(caps or [len(s) for s in steps]),
        tokens=100, window_size=8, ladders=tuple(np.array(s) for s in steps),
    )  # fmt: skip


class TestGlobalScores:
    @given(ladders, st.integers(0, 20), st.integers(0, 3), fractions)
    def test_sum_is_exact_and_caps_hold(self, steps, budget, more, floor) -> None:
        layers = len(steps) + more
        budgets = GlobalScores(floor=floor)(demand(steps, budget, layers))
        assert sum(budgets) == min(budget * layers, sum(map(len, steps)))
        assert all(0 <= b <= len(s) for b, s in zip(budgets, steps, strict=True))

    @given(ladders, st.integers(0, 20), st.integers(0, 3), fractions)
    def test_a_cascade_that_forgets_what_it_dropped_ends_where_one_shot_does(self, steps, budget, more, floor) -> None:
        """Layer by layer, each ladder cut to its last budget: nothing grows, and the end is the same."""
        allocator, layers = GlobalScores(floor=floor), len(steps) + more
        held, before = [], []
        for count, ladder in enumerate(steps, 1):
            held.append(ladder)
            caps = [len(s) for s in steps[:count]]
            budgets = allocator(demand(held, budget, layers, caps))
            assert all(a <= b for a, b in zip(budgets, before, strict=False))
            held = [s[:b] for s, b in zip(held, budgets, strict=True)]
            before = budgets
        assert before == allocator(demand(steps, budget, layers))

    @given(ladders, st.integers(1, 20), fractions)
    def test_every_layer_gets_its_floor(self, steps, budget, floor) -> None:
        steps = [[min(v, 2.0) for v in s] for s in steps]
        budgets = GlobalScores(floor=floor)(demand(steps, budget, len(steps)))
        assert all(b >= min(math.floor(floor * budget), len(s)) for b, s in zip(budgets, steps, strict=True))

    def test_the_best_steps_of_all_layers_are_taken(self) -> None:
        steps = [[0.9, 0.2, 0.1], [0.8, 0.7, 0.6], [0.3, 0.2, 0.1]]
        assert GlobalScores()(demand(steps, 1, 3)) == [1, 2, 0]
        assert GlobalScores(floor=1.0)(demand(steps, 1, 3)) == [1, 1, 1]
        assert GlobalScores()(demand(steps, 2, 3)) == [2, 3, 1]

    def test_what_a_short_prompt_leaves_is_shared_evenly(self) -> None:
        asked = demand([[1.0] * 7] * 3, 10, 3)
        assert GlobalScores().limits(asked, GlobalScores()(asked)) == [10, 10, 10]

    def test_needs_ladders(self) -> None:
        asked = LayerDemand(
            layers=1, budget=1, entropy=None, variance=None, caps=(3,), tokens=9, window_size=6
        )  # fmt: skip
        with pytest.raises(ValueError, match="ladders"):
            GlobalScores()(asked)


caps_of_layers = st.lists(st.integers(0, 300), min_size=1, max_size=12)


class TestPyramid:
    @given(caps_of_layers, st.integers(0, 300), st.integers(0, 4), st.floats(1, 100))
    def test_sum_is_exact_and_caps_hold(self, caps, budget, more, beta) -> None:
        asked = demand([[]] * len(caps), budget, len(caps) + more, caps)
        budgets = Pyramid(beta=beta)(asked)
        assert sum(budgets) == min(budget * (len(caps) + more), sum(caps))
        assert all(0 <= b <= cap for b, cap in zip(budgets, caps, strict=True))

    @given(caps_of_layers, st.integers(0, 300), st.floats(1, 100), st.integers(0, 300))
    def test_adding_a_layer_never_raises_another(self, caps, budget, beta, cap) -> None:
        layers, allocator = len(caps) + 1, Pyramid(beta=beta)
        before = allocator(demand([[]] * len(caps), budget, layers, caps))
        after = allocator(demand([[]] * layers, budget, layers, [*caps, cap]))
        assert all(a <= b for a, b in zip(after, before, strict=False))

    @pytest.mark.parametrize(("budget", "beta"), [(118, 20.0), (142, 1e12), (1000, 2.0), (64, 1.0)])
    def test_falls_linearly_and_rounds_to_the_nearest(self, budget, beta) -> None:
        layers = 32
        budgets = Pyramid(beta=beta)(demand([[]] * layers, budget, layers, [10**6] * layers))
        line = np.linspace(2 * budget - budget / beta, budget / beta, layers)
        assert np.abs(np.array(budgets) - line).max() < 0.6
        assert budgets == sorted(budgets, reverse=True)


@given(st.lists(st.tuples(st.floats(-20, 20), st.integers(0, 200)), min_size=1, max_size=10), st.integers(0, 900))
def test_rounding_to_the_nearest_is_the_method_of_webster(entries, total) -> None:
    """Seat by seat by weight / (seats + 1/2), the definition."""
    logs, caps = [w for w, _ in entries], [c for _, c in entries]
    seats = [0] * len(logs)
    for _ in range(min(total, sum(caps))):
        open_layers = [i for i in range(len(logs)) if seats[i] < caps[i]]
        seats[min(open_layers, key=lambda i: (math.log(seats[i] + 0.5) - logs[i], i))] += 1
    assert apportion(logs, total, caps, rounding=0.5) == seats
