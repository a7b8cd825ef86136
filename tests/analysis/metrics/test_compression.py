"""What compression left, against plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.analysis.metrics import compression
from tests.analysis.metrics.maps import attentions, by_row, random_attention
from tests.tolerances import assert_close

Row = np.ndarray


def kept_of(shape: tuple[int, ...], seed: int, share: float = 0.5) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def term(p: float) -> float:
    return -p * math.log(p) if p > 0 else 0.0


@pytest.mark.parametrize("shape", [(2, 5, 17), (1, 1, 3), (3, 2, 4, 63)], ids=str)
def test_information_kept_is_the_share_of_the_terms(shape: tuple[int, ...]) -> None:
    values, kept = random_attention(*shape), kept_of(shape[-1:], 1)

    def mass(p: Row, kept: Row) -> float:
        return math.fsum(p[kept]) / math.fsum(p)

    def entropy(p: Row, kept: Row) -> float:
        return math.fsum(map(term, p[kept])) / math.fsum(map(term, p))

    def variance(p: Row, kept: Row) -> float:
        squares = (p - np.mean(p)) ** 2
        return math.fsum(squares[kept]) / math.fsum(squares)

    pairs = [
        (compression.attention_mass_kept, mass),
        (compression.entropy_kept, entropy),
        (compression.variance_kept, variance),
    ]
    for function, reference in pairs:
        wanted = by_row(values, reference, kept)
        assert_close(function(values, kept), wanted)
        assert_close(function(values.float(), kept), wanted, torch.float32)


@given(attentions(), st.integers(0, 1000), st.floats(0, 1))
def test_keeping_more_keeps_no_less(values: torch.Tensor, seed: int, share: float) -> None:
    fewer = kept_of(tuple(values.shape[-1:]), seed, share)
    more = fewer | kept_of(tuple(values.shape[-1:]), seed + 1)
    for function in (compression.attention_mass_kept, compression.entropy_kept, compression.variance_kept):
        less, rest, whole = function(values, fewer), function(values, more), function(values, fewer | True)
        defined = ~torch.isnan(whole)
        assert_close(whole[defined], torch.ones_like(whole[defined]))
        assert bool((less <= rest + 1e-12)[defined].all())
        assert bool(((less >= 0) & (rest <= 1 + 1e-12))[defined].all())


def test_information_that_is_not_there_is_nan() -> None:
    one, even = torch.eye(3)[:1], torch.full((1, 4), 0.25)
    assert math.isnan(float(compression.entropy_kept(one, torch.ones(3, dtype=torch.bool))))
    assert math.isnan(float(compression.variance_kept(even, torch.ones(4, dtype=torch.bool))))


def test_ratio_is_the_fraction_removed() -> None:
    ratio = compression.compression_ratio(torch.tensor([[25, 100], [0, 50]]), torch.tensor([100, 100]))
    assert ratio.tolist() == [[0.75, 0.0], [1.0, 0.5]]


def test_bytes_count_keys_and_values() -> None:
    keys = torch.zeros(3, 2, 10, 16, dtype=torch.bfloat16)  # layers, heads, tokens, dimensions
    values = torch.zeros(3, 2, 10, 24, dtype=torch.bfloat16)
    total = compression.cache_bytes(tokens=10, layers=3, kv_heads=2, head_dim=16, value_dim=24, element_bytes=2)
    assert total == keys.nbytes + values.nbytes
    with pytest.raises(ValueError, match="kv_heads must be at least 0; got -2"):
        compression.cache_bytes(tokens=1, layers=1, kv_heads=-2, head_dim=1, value_dim=1, element_bytes=1)


def test_budget_utilisation_and_share() -> None:
    held = torch.tensor([[[10, 20], [40, 40], [100, 100]]])  # one event, three layers, two heads
    budget = torch.tensor([22, 32, -1])
    utilisation = compression.budget_utilisation(held, budget, 8)
    assert utilisation[0, :2].tolist() == [0.5, 1.0]
    assert math.isnan(float(utilisation[0, 2]))
    share = compression.budget_share(budget)
    assert share[:2].tolist() == pytest.approx([22 / 54, 32 / 54])
    assert math.isnan(float(share[2]))


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12))
def test_budget_shares_sum_to_one(budgets: list[int]) -> None:
    share = compression.budget_share(torch.tensor(budgets))
    if sum(budgets):
        assert float(share.sum()) == pytest.approx(1)
        assert bool(((share >= 0) & (share <= 1)).all())


def test_evictions_are_counted_where_they_happened() -> None:
    generator = torch.Generator().manual_seed(0)
    evicted = torch.randint(-1, 6, (3, 2, 40), generator=generator)
    counts = compression.evictions_by_event(evicted, 6)
    wanted = [[int((evicted[layer] == event).sum()) for layer in range(3)] for event in range(6)]
    assert counts.tolist() == wanted
    assert int(counts.sum()) == int((evicted >= 0).sum())
    with pytest.raises(ValueError, match="below events=3"):
        compression.evictions_by_event(evicted, 3)


def test_eviction_frequency_is_per_head_and_decoded_token() -> None:
    stage = torch.zeros(2, 4, 30, dtype=torch.int64)
    stage[0, :, :5] = 3  # each head of layer 0 evicted five while decoding
    stage[1, 0, :10] = 1
    stage[1, 1, :3] = 2
    assert compression.eviction_frequency(stage, 10).tolist() == [0.5, 0.0]
    assert torch.isnan(compression.eviction_frequency(stage, 0)).all()
    assert compression.evicted_by_stage(stage)[1].tolist() == [[10, 0, 0], [0, 3, 0], [0, 0, 0], [0, 0, 0]]
