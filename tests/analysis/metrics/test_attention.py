"""Metrics of a query's attention, each against plain loops in float64, and the laws that they keep."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.analysis.metrics import attention, attention_shares
from kvcompress.analysis.metrics.inputs import causal_mask
from tests.analysis.metrics.maps import attentions, by_row, random_attention, rows
from tests.tolerances import assert_close

Row = np.ndarray


def entropy_of(p: Row) -> float:
    return -math.fsum(x * math.log(x) for x in p if x > 0)


def positions_of(p: Row, percent: float) -> int:
    held, count = 0.0, 0
    for x in sorted(p, reverse=True):
        if held >= percent / 100 * math.fsum(p) * (1 - 1e-9):
            break
        held, count = held + x, count + 1
    return count


# Of one row and the keys that it sees.
REFERENCES: dict[str, Callable[[Row, Row], float]] = {
    "mean": lambda p, seen: float(np.mean(p[seen])),
    "entropy": lambda p, seen: entropy_of(p[seen]),
    "entropy_normalised": lambda p, seen: entropy_of(p[seen]) / math.log(seen.sum()) if seen.sum() > 1 else 0.0,
    "focus": lambda p, seen: 1 / entropy_of(p[seen]) if entropy_of(p[seen]) else math.inf,
    "maximum": lambda p, seen: max(p[seen]),
    "variance": lambda p, seen: float(np.var(p[seen])),
    "density": lambda p, seen: float(np.mean(p[seen] > 1 / seen.sum())),
}
WITH_SEEN = {"mean", "entropy_normalised", "variance", "density"}


def compute(name: str, values: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
    function = getattr(attention, name)
    result: torch.Tensor = function(values, seen) if name in WITH_SEEN and seen is not None else function(values)
    return result


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3, 5, 5), (4, 1, 63), (2, 7, 111)], ids=str)
@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_metric_is_the_plain_formula(name: str, shape: tuple[int, ...], causal: bool) -> None:
    values = random_attention(*shape, causal=causal)
    seen = causal_mask(*shape[-2:]) if causal else torch.ones(shape[-2:], dtype=torch.bool)
    wanted = [
        REFERENCES[name](row, mask.numpy())
        for row, mask in zip(rows(values), seen.expand(values.shape).flatten(0, -2), strict=True)
    ]
    wanted_shape = torch.tensor(wanted, dtype=torch.float64).view(shape[:-1])
    assert_close(compute(name, values, seen if causal else None), wanted_shape, torch.float64)
    tolerance = torch.float32 if name != "focus" else torch.bfloat16  # 1 / entropy magnifies the rounding of small ones
    if name != "density":  # a step: rounding moves keys across it
        assert_close(compute(name, values.float(), seen if causal else None), wanted_shape, tolerance)


@pytest.mark.parametrize("percent", [1, 50, 80, 90, 95, 99, 100])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 40), (2, 63, 63)], ids=str)
def test_positions_for_a_percentage(percent: float, shape: tuple[int, ...]) -> None:
    values = random_attention(*shape, causal=shape[-2] == shape[-1])
    wanted = by_row(values, lambda p: positions_of(p, percent)).long()
    assert torch.equal(attention.positions_for(values, percent), wanted)


@pytest.mark.parametrize(
    ("keys", "percent", "wanted"), [(10, 50, 5), (10, 80, 8), (10, 100, 10), (64, 90, 58), (1, 99, 1)]
)
def test_even_attention_needs_the_same_share_of_the_keys(keys: int, percent: float, wanted: int) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        even = torch.full((1, keys), 1 / keys, dtype=dtype)
        assert int(attention.positions_for(even, percent)) == wanted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    values = random_attention(2, 5, 300).to(dtype)
    for name in ("entropy", "variance", "mean"):
        assert_close(compute(name, values, None), compute(name, values.double(), None), torch.float32)


def test_shares_are_sums_over_their_keys() -> None:
    values = random_attention(2, 9, 30, causal=True)
    places = range(21, 30)
    for head in range(2):
        for query, place in enumerate(places):
            p = values[head, query]
            sink = sum(float(p[j]) for j in range(4))
            recent = sum(float(p[j]) for j in range(30) if abs(place - j) < 6)
            assert float(attention_shares.sink_share(values)[head, query]) == pytest.approx(sink, abs=1e-12)
            assert float(attention_shares.recent_share(values, 6)[head, query]) == pytest.approx(recent, abs=1e-12)
            assert float(attention_shares.diagonal_share(values)[head, query]) == float(p[place])


def test_recent_counts_later_keys_too_where_the_model_looks_ahead() -> None:
    values = torch.full((5, 5), 0.2, dtype=torch.float64)
    assert_close(attention_shares.recent_share(values, 2), torch.tensor([0.4, 0.6, 0.6, 0.6, 0.4], dtype=torch.float64))


def test_first_query_places_the_queries() -> None:
    values = random_attention(3, 20)
    assert torch.equal(
        attention_shares.diagonal_share(values, first_query=5), values[torch.arange(3), torch.arange(5, 8)]
    )


class TestLaws:
    @given(attentions())
    def test_entropy_is_between_none_and_that_of_even_attention(self, values: torch.Tensor) -> None:
        nats = attention.entropy(values)
        assert bool((nats >= 0).all())
        assert bool((nats <= math.log(values.shape[-1]) + 1e-12).all())
        share = attention.entropy_normalised(values)
        assert bool(((share >= 0) & (share <= 1)).all())

    @given(attentions())
    def test_shares_lie_between_none_and_all(self, values: torch.Tensor) -> None:
        for share in (attention.density(values), attention_shares.sink_share(values), attention.maximum(values)):
            assert bool(((share >= 0) & (share <= 1 + 1e-12)).all())

    @given(attentions(), st.integers(0, 100))
    def test_order_of_keys_means_nothing_to_statistics(self, values: torch.Tensor, seed: int) -> None:
        order = torch.randperm(values.shape[-1], generator=torch.Generator().manual_seed(seed))
        for name in ("mean", "entropy", "entropy_normalised", "variance", "density", "maximum"):
            assert_close(compute(name, values[..., order], None), compute(name, values, None))
        assert torch.equal(attention.positions_for(values[..., order], 90), attention.positions_for(values, 90))

    @given(attentions())
    def test_order_of_queries_and_heads_is_kept(self, values: torch.Tensor) -> None:
        for name in ("entropy", "variance", "density"):
            assert torch.equal(compute(name, values.flip(0, 1), None), compute(name, values, None).flip(0, 1))

    @given(attentions(), st.floats(0.1, 100), st.floats(0.1, 100))
    def test_more_mass_needs_no_fewer_keys(self, values: torch.Tensor, one: float, other: float) -> None:
        fewer, more = sorted((one, other))
        assert bool((attention.positions_for(values, fewer) <= attention.positions_for(values, more)).all())
        assert int(attention.positions_for(values, one).min()) >= 1
        assert int(attention.positions_for(values, one).max()) <= values.shape[-1]

    @given(attentions(), st.integers(0, 30), st.integers(0, 30))
    def test_more_recent_tokens_hold_no_less(self, values: torch.Tensor, one: int, other: int) -> None:
        fewer, more = sorted((one, other))
        first = values.shape[-1]
        less = attention_shares.recent_share(values, fewer, first)
        assert bool((less <= attention_shares.recent_share(values, more, first) + 1e-15).all())

    @given(attentions(), st.integers(1, 20))
    def test_keys_that_are_not_seen_change_nothing(self, values: torch.Tensor, hidden: int) -> None:
        padded = torch.nn.functional.pad(values, (0, hidden))
        seen = torch.arange(padded.shape[-1]) < values.shape[-1]
        for name in ("mean", "entropy", "entropy_normalised", "variance", "density"):
            assert_close(compute(name, padded, seen), compute(name, values, None))

    def test_extremes(self) -> None:
        one = torch.eye(8, dtype=torch.float64)
        even = torch.full((1, 8), 1 / 8, dtype=torch.float64)
        assert attention.entropy(one).tolist() == [0.0] * 8
        assert attention.focus(one).tolist() == [math.inf] * 8
        assert_close(attention.variance(one), torch.full((8,), 7 / 64, dtype=torch.float64))
        assert float(attention.entropy(even)) == pytest.approx(math.log(8))
        assert float(attention.variance(even)) == 0
        assert float(attention.density(even)) == 0


class TestRefusals:
    @pytest.mark.parametrize(
        ("values", "words"),
        [
            (torch.tensor([[0.5, float("nan")]]), "finite; 1 of its 2"),
            (torch.tensor([[0.5, float("inf")]]), "finite"),
            (torch.tensor([[0.9, 0.9]]), "row sum 1.8"),
            (torch.tensor([[1.5, -0.5]]), "smallest value is -0.5"),
            (torch.ones(0, 3), "at least one of each"),
            (torch.ones(3), "queries, keys"),
        ],
    )
    def test_what_is_no_attention(self, values: torch.Tensor, words: str) -> None:
        for name in REFERENCES:
            with pytest.raises(ValueError, match=words):
                compute(name, values, None)

    @pytest.mark.parametrize(
        "values", [torch.ones(2, 2, dtype=torch.int64), [[1.0]], None], ids=["int", "list", "none"]
    )
    def test_what_is_no_floating_point_tensor(self, values: torch.Tensor) -> None:
        with pytest.raises(TypeError, match="floating-point"):
            attention.entropy(values)

    @pytest.mark.parametrize("percent", [0, -1, 100.5, math.nan, math.inf])
    def test_percentage_out_of_range(self, percent: float) -> None:
        with pytest.raises(ValueError, match=r"percent must be in \(0, 100\]"):
            attention.positions_for(random_attention(2, 3), percent)

    def test_mask_that_hides_all_or_what_has_mass(self) -> None:
        values = random_attention(2, 3)
        with pytest.raises(ValueError, match="at least one key"):
            attention.density(torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool))
        with pytest.raises(ValueError, match="must be 0 on keys that seen hides"):
            attention.variance(values, torch.tensor([True, True, False]))

    def test_queries_that_do_not_fit_on_the_keys(self) -> None:
        with pytest.raises(ValueError, match="first_query must be at least 0"):
            attention_shares.diagonal_share(random_attention(5, 3))

    @pytest.mark.parametrize("count", [-1, -5])
    def test_negative_counts(self, count: int) -> None:
        with pytest.raises(ValueError, match="sink_tokens must be at least 0"):
            attention_shares.sink_share(random_attention(2, 3), count)
        with pytest.raises(ValueError, match="recent_tokens must be at least 0"):
            attention_shares.recent_share(random_attention(2, 3), count)
