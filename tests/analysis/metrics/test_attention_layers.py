"""Similarity of layers and trends over steps."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.analysis.metrics.attention_layers import layer_similarity, trend
from tests.analysis.metrics.maps import random_attention
from tests.tolerances import assert_close


def test_similarity_is_the_cosine_of_each_pair() -> None:
    layers = random_attention(5, 2, 6, 9)
    flat = layers.flatten(1).numpy()
    wanted = [[np.dot(a, b) / math.sqrt(np.dot(a, a) * np.dot(b, b)) for b in flat] for a in flat]
    assert_close(layer_similarity(layers), torch.tensor(wanted))
    assert_close(layer_similarity(layers.float()), torch.tensor(wanted), torch.float32)


@given(st.integers(1, 6), st.integers(1, 20), st.integers(0, 100))
def test_similarity_laws(layers: int, tokens: int, seed: int) -> None:
    values = random_attention(layers, 1, tokens, seed=seed)
    matrix = layer_similarity(values)
    assert_close(matrix, matrix.T)
    assert_close(matrix.diagonal(), torch.ones(layers).double())
    assert bool(((matrix >= 0) & (matrix <= 1)).all())
    assert_close(layer_similarity(3 * values), matrix)  # length means nothing
    order = torch.randperm(layers, generator=torch.Generator().manual_seed(seed))
    assert_close(layer_similarity(values[order]), matrix[order][:, order])


def test_layer_without_mass_has_no_similarity() -> None:
    matrix = layer_similarity(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]]))
    assert torch.isnan(matrix[1]).all()
    assert float(matrix[0, 2]) == 0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (torch.zeros(0, 3), "at least one value"),
        (torch.zeros(3), "at least one value"),
        (torch.full((2, 2), math.nan), "finite"),
    ],
)
def test_similarity_refuses(values: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        layer_similarity(values)


def test_trend_is_the_least_squares_line() -> None:
    values = torch.randn(7, 2, 3, dtype=torch.float64)
    steps = torch.tensor([0, 1, 4, 5, 9, 10, 20])
    found = trend(values, steps)
    slopes = np.polyfit(steps.numpy(), values.flatten(1).numpy(), 1)[0]
    assert_close(found.slope, torch.tensor(slopes).view(2, 3))
    assert torch.equal(found.first, values[0])
    assert torch.equal(found.change, values[-1] - values[0])
    assert_close(trend(values).slope, torch.tensor(np.polyfit(range(7), values.flatten(1).numpy(), 1)[0]).view(2, 3))


def test_trend_of_one_step_has_no_slope() -> None:
    found = trend(torch.tensor([3.0]))
    assert math.isnan(float(found.slope))
    assert float(found.change) == 0


def test_trend_refuses() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        trend(torch.zeros(0))
    with pytest.raises(ValueError, match="one number for each of the 3 values"):
        trend(torch.zeros(3), torch.arange(2))
