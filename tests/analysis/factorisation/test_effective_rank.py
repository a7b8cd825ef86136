"""Effective and stable rank: known matrices, and their laws."""

from math import exp, log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.analysis.factorisation.effective_rank import effective_rank, stable_rank

positive = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12)


def test_equal_singular_values_count_fully_and_one_alone_counts_one() -> None:
    for rank in (effective_rank, stable_rank):
        assert float(rank(torch.full((7,), 3.0))) == pytest.approx(7)
        assert float(rank(torch.tensor([5.0, 0.0, 0.0]))) == pytest.approx(1)
        assert float(rank(torch.zeros(4))) == 0


def test_worked_example() -> None:
    values = torch.tensor([3.0, 1.0])
    assert float(effective_rank(values)) == pytest.approx(exp(-0.75 * log(0.75) - 0.25 * log(0.25)))
    assert float(stable_rank(values)) == pytest.approx(10 / 9)


@given(positive, st.floats(1e-3, 1e3), st.randoms(use_true_random=False))
def test_bounds_scale_and_order(values: list[float], scale: float, random: object) -> None:
    singular = torch.tensor(values, dtype=torch.float64)
    turned = singular.flip(0) * scale
    for rank in (effective_rank, stable_rank):
        found = float(rank(singular))
        assert 1 - 1e-9 <= found <= len(values) + 1e-9
        assert float(rank(turned)) == pytest.approx(found, rel=1e-9)


def test_batches_are_what_their_members_are() -> None:
    batch = torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(0))
    for rank in (effective_rank, stable_rank):
        found = rank(batch)
        assert found.shape == (3, 2)
        assert float(found[1, 0]) == pytest.approx(float(rank(batch[1, 0])))


def test_huge_values_do_not_overflow() -> None:
    assert float(stable_rank(torch.tensor([1e300, 1e300], dtype=torch.float64))) == pytest.approx(2)


def test_bad_values_are_refused() -> None:
    for rank in (effective_rank, stable_rank):
        with pytest.raises(ValueError, match="must be finite and not negative"):
            rank(torch.tensor([1.0, -1.0]))
        with pytest.raises(ValueError, match="must be finite and not negative"):
            rank(torch.tensor([torch.nan]))
        with pytest.raises(ValueError, match="with n at least 1"):
            rank(torch.zeros(3, 0))
