"""Sparsity of keys and values, against plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.analysis.metrics import cache_sparsity
from tests.tolerances import assert_close

THRESHOLDS = (0.0, 0.01, 0.1, 0.25, 1.0, 10.0)


def random_values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("shape", [(2, 3, 17, 12), (1, 1, 1, 1), (3, 2, 63, 20)], ids=str)
def test_sparsity_is_a_count_of_small_entries(shape: tuple[int, ...], threshold: float) -> None:
    values = random_values(*shape)
    small = np.zeros(shape, dtype=bool)
    for head in np.ndindex(shape[:2]):
        entries = values[head].numpy()
        limit = threshold * math.sqrt(math.fsum((entries**2).ravel()) / entries.size)
        small[head] = abs(entries) < limit
    for of, axes in (("head", (2, 3)), ("layer", (1, 2, 3)), ("token", 3), ("dimension", 2)):
        function = getattr(cache_sparsity, f"{of}_sparsity")
        assert_close(function(values, threshold), torch.tensor(small.mean(axes)))


def test_scale_norm_and_energy() -> None:
    values = random_values(2, 5, 7)
    squares = values.numpy() ** 2
    assert_close(cache_sparsity.scale(values), torch.tensor(np.sqrt(squares.mean((1, 2)))))
    assert_close(cache_sparsity.norms(values), torch.tensor(np.sqrt(squares.sum(2))))
    assert_close(cache_sparsity.dimension_energy(values), torch.tensor(squares.mean(1)))


def test_given_scale_is_used() -> None:
    values = random_values(2, 5, 7)
    assert_close(
        cache_sparsity.head_sparsity(values, 0.5, 2 * cache_sparsity.scale(values)),
        cache_sparsity.head_sparsity(values, 1.0),
    )


@given(st.integers(1, 4), st.integers(1, 20), st.integers(1, 9), st.integers(0, 100), st.floats(0.01, 100))
def test_sparsity_laws(heads: int, tokens: int, dims: int, seed: int, factor: float) -> None:
    values = random_values(heads, tokens, dims, seed=seed)
    before = torch.zeros(heads).double()
    for threshold in THRESHOLDS:
        share = cache_sparsity.head_sparsity(values, threshold)
        assert bool(((before <= share) & (share <= 1)).all())  # more is small below a larger threshold
        assert_close(share, cache_sparsity.token_sparsity(values, threshold).mean(-1))
        assert_close(share, cache_sparsity.dimension_sparsity(values, threshold).mean(-1))
        order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
        assert_close(
            cache_sparsity.dimension_sparsity(values[:, order], threshold),
            cache_sparsity.dimension_sparsity(values, threshold),
        )
        before = share
    assert_close(cache_sparsity.scale(factor * values), factor * cache_sparsity.scale(values))


@given(st.integers(1, 10), st.integers(1, 12), st.integers(0, 100))
def test_consistency_lies_between_none_and_all(heads: int, dims: int, seed: int) -> None:
    sparsity = torch.rand(heads, dims, generator=torch.Generator().manual_seed(seed))
    found = cache_sparsity.dimension_consistency(sparsity)
    assert_close(found, torch.tensor(1 - 2 * np.std(sparsity.double().numpy(), axis=0)))
    assert bool(((found >= 0) & (found <= 1)).all())


def test_consistency_at_its_ends() -> None:
    sparsity = torch.tensor([[0.0, 0.4], [1.0, 0.4]])
    assert cache_sparsity.dimension_consistency(sparsity).tolist() == pytest.approx([0.0, 1.0])


def needed(energy: list[float], percent: float) -> int:
    held, count = 0.0, 0
    for part in sorted(energy, reverse=True):
        if held >= math.fsum(energy) * percent / 100 * (1 - 1e-9):
            break
        held, count = held + part, count + 1
    return count


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.floats(1, 100))
def test_pruning_potential_is_what_may_go(energy: list[float], percent: float) -> None:
    found = float(cache_sparsity.pruning_potential(torch.tensor(energy, dtype=torch.float64), percent))
    if math.fsum(energy) == 0:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(1 - max(needed(energy, percent), 1) / len(energy), abs=1e-12)
        assert 0 <= found < 1


def test_pruning_potential_of_known_energy() -> None:
    energy = torch.tensor([[97.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 5.0, 0.0, 0.0]])
    assert cache_sparsity.pruning_potential(energy, 98).tolist() == [0.5, 0.0, 0.75]


class TestRefusals:
    def test_bad_values(self) -> None:
        with pytest.raises(ValueError, match="finite"):
            cache_sparsity.norms(torch.full((2, 2), math.nan))
        with pytest.raises(ValueError, match="at least one of each"):
            cache_sparsity.head_sparsity(torch.zeros(3, 0, 4), 0.1)

    @pytest.mark.parametrize("threshold", [-0.1, math.nan])
    def test_bad_threshold(self, threshold: float) -> None:
        with pytest.raises(ValueError, match="threshold must be at least 0"):
            cache_sparsity.head_sparsity(random_values(2, 3), threshold)

    def test_bad_energy(self) -> None:
        with pytest.raises(ValueError, match="keep_percent"):
            cache_sparsity.pruning_potential(torch.ones(3), 0)
        for bad in (-1.0, math.nan):
            with pytest.raises(ValueError, match="negative or NaN"):
                cache_sparsity.pruning_potential(torch.tensor([1.0, bad]))
