"""Stages of a generation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.analysis.metrics.generation_stages import stage_changes, stage_means, stages, weighted_mean
from tests.tolerances import assert_close


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [
        ([0, 1, 1, 1, 1, 1, 1], [0, 1, 1, 2, 2, 3, 3]),
        ([0, 0, 1], [0, 0, 1]),
        ([2, 2, 2, 2], [1, 1, 2, 3]),
        ([0], [0]),
        ([0, 1, 0, 1, 1], [0, 1, 0, 2, 3]),
        ([], []),
    ],
)
def test_generation_falls_into_thirds(kinds: list[int], wanted: list[int]) -> None:
    assert stages(torch.tensor(kinds, dtype=torch.int64)).tolist() == wanted


@given(st.lists(st.integers(0, 2), max_size=60))
def test_thirds_are_even_and_in_order(kinds: list[int]) -> None:
    found = stages(torch.tensor(kinds, dtype=torch.int64))
    generated = [stage for stage, kind in zip(found.tolist(), kinds, strict=True) if kind]
    assert generated == sorted(generated)
    sizes = [generated.count(stage) for stage in (1, 2, 3)]
    assert max(sizes) - min(sizes) <= 1
    assert all(stage == 0 for stage, kind in zip(found.tolist(), kinds, strict=True) if not kind)


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="kinds must be 0, 1 or 2"):
        stages(torch.tensor([0, 3]))


def test_means_are_weighted_and_changes_are_differences() -> None:
    values = torch.tensor([[1.0, 10.0], [3.0, math.nan], [5.0, 6.0], [7.0, 8.0]])
    means = stage_means(values, torch.tensor([0, 0, 1, 2]), torch.tensor([3, 1, 5, 1]))
    assert means[:3].tolist() == [[1.5, 10.0], [5.0, 6.0], [7.0, 8.0]]
    assert torch.isnan(means[3]).all()  # a stage without events
    assert stage_changes(means)[:2].tolist() == [[3.5, -4.0], [2.0, 2.0]]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 50))
def test_blocks_of_a_prompt_average_to_the_whole(blocks: list[int], seed: int) -> None:
    queries = torch.rand(sum(blocks), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    means = torch.stack([block.mean(0) for block in queries.split(blocks)])
    assert_close(weighted_mean(means, torch.tensor(blocks)), queries.mean(0))
