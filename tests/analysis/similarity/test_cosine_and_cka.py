"""Cosines, CKA and redundancy against plain float64 formulas, and their laws."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.analysis.similarity.cka import linear_cka
from kvcompress.analysis.similarity.cosine import (
    cosine_matrix,
    head_cosine,
    layer_cosine,
    mean_cosine,
    token_vectors,
)
from kvcompress.analysis.similarity.redundancy import nearest_cosine, redundancy
from kvcompress.analysis.similarity.spacing import evenly_spaced
from tests.tolerances import assert_close


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairwise(vectors: torch.Tensor) -> torch.Tensor:
    rows = [torch.stack([torch.nn.functional.cosine_similarity(a, b, dim=0) for b in vectors]) for a in vectors]
    return torch.stack(rows)


@pytest.mark.parametrize("count", [1, 2, 63])
def test_cosines_are_those_of_pairs(count: int) -> None:
    vectors = random(count, 7)
    matrix = cosine_matrix(vectors)
    assert_close(matrix, pairwise(vectors))
    others = matrix[~torch.eye(count, dtype=torch.bool)]
    mean = mean_cosine(vectors)
    assert mean is None if count == 1 else mean == pytest.approx(float(others.mean()), abs=1e-12)


def test_a_zero_vector_is_similar_to_nothing_and_not_counted() -> None:
    vectors = torch.cat([random(3, 4), torch.zeros(1, 4, dtype=torch.float64)])
    assert not cosine_matrix(vectors)[3].any()
    assert mean_cosine(vectors) == pytest.approx(mean_cosine(vectors[:3]))
    assert mean_cosine(torch.zeros(3, 4)) is None


def test_tokens_are_their_heads_side_by_side() -> None:
    states = random(2, 5, 3)
    assert torch.equal(token_vectors(states)[4], torch.cat([states[0, 4], states[1, 4]]))


def test_heads_and_layers_are_compared_flattened() -> None:
    states = random(3, 5, 4)
    assert_close(head_cosine(states), pairwise(states.flatten(1)))
    layers = [random(2, 5, 3, seed=seed) for seed in range(3)]
    found = layer_cosine(layers)
    assert found is not None
    assert_close(found, pairwise(torch.stack([layer.flatten() for layer in layers])))
    assert layer_cosine([random(2, 5, 3), random(1, 5, 3)]) is None


def plain_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Compute the kernel form: HSIC of the centred Gram matrices."""
    centring = torch.eye(len(x), dtype=torch.float64) - 1 / len(x)
    k, m = centring @ x @ x.T @ centring, centring @ y @ y.T @ centring
    return float((k * m).sum() / (k.norm() * m.norm()))


@pytest.mark.parametrize("tokens", [20, 600])  # by Gram matrices, and by features
def test_cka_is_the_kernel_form(tokens: int) -> None:
    features = [random(tokens, 4), random(tokens, 7, seed=1), random(tokens, 30, seed=2)]
    found = linear_cka(features)
    for i, x in enumerate(features):
        for j, y in enumerate(features):
            assert float(found[i, j]) == pytest.approx(plain_cka(x, y), abs=1e-12)


@given(st.integers(0, 99), st.floats(0.01, 100), st.floats(-50, 50))
def test_cka_does_not_see_rotation_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    x, y = random(15, 5, seed=seed), random(15, 6, seed=seed + 1)
    rotation = torch.linalg.qr(random(5, 5, seed=seed + 2)).Q
    changed = scale * x @ rotation + shift
    found = linear_cka([x, changed, y])
    assert float(found[0, 1]) == pytest.approx(1, abs=1e-9)
    assert float(found[1, 2]) == pytest.approx(float(found[0, 2]), abs=1e-9)
    assert torch.equal(found, found.T)
    assert bool(((found >= 0) & (found <= 1)).all())


def test_cka_of_a_constant_is_zero_and_of_huge_numbers_finite() -> None:
    constant = torch.full((6, 3), 0.1, dtype=torch.float64)
    found = linear_cka([constant, random(6, 3), random(6, 3) * 1e100])
    assert not found[0].any()
    assert float(found[1, 2]) == pytest.approx(1)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 9))
def test_the_nearest_token_is_found_blockwise_as_whole(count: int, block: int, seed: int) -> None:
    vectors = random(count, 3, seed=seed)
    whole = cosine_matrix(vectors).fill_diagonal_(-torch.inf).amax(-1)
    assert_close(nearest_cosine(vectors, block=block), whole)
    thresholds = (-1.0, 0.5, 0.9)
    wanted = [float((whole > threshold).double().mean()) for threshold in thresholds]
    assert redundancy(vectors, thresholds, block=block) == pytest.approx(wanted)


def test_doubles_are_redundant() -> None:
    vectors = torch.eye(4, dtype=torch.float64)
    assert redundancy(vectors, (0.9,)) == [0.0]
    assert redundancy(torch.cat([vectors, 3 * vectors[:1]]), (0.9,)) == [pytest.approx(0.4)]
    assert redundancy(vectors[:1], (-1.0,)) == [0.0]


@given(st.integers(1, 300), st.integers(1, 300))
def test_evenly_spaced_places(count: int, most: int) -> None:
    places = evenly_spaced(count, most).tolist()
    assert len(places) == min(count, most)
    assert places == sorted(set(places))
    assert places[0] == 0
    if len(places) > 1:
        assert places[-1] == count - 1
        steps = {b - a for a, b in itertools.pairwise(places)}
        assert max(steps) - min(steps) <= 1


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="states must be"):
        token_vectors(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="states must be finite"):
        token_vectors(torch.full((1, 2, 2), torch.inf))
    with pytest.raises(ValueError, match="of the same tokens"):
        linear_cka([torch.zeros(3, 2), torch.zeros(4, 2)])
    with pytest.raises(ValueError, match="features must be matrices"):
        linear_cka([])
    with pytest.raises(ValueError, match=r"thresholds must lie in \[-1, 1\]"):
        redundancy(torch.ones(2, 2), (1.5,))
    with pytest.raises(ValueError, match="block must be at least 1"):
        nearest_cosine(torch.ones(2, 2), block=0)
    with pytest.raises(ValueError, match="count and most must be at least 1"):
        evenly_spaced(3, 0)
