"""Tucker decompositions: exact on tensors of low rank, errors as direct reconstruction in float64 says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.analysis.factorisation.ranks import Ranks, ranks_at
from kvcompress.analysis.factorisation.tucker import decompose, reconstruct, relative_error
from tests.tolerances import assert_close


def random_tensor(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low_rank(heads: int, tokens: int, dim: int, ranks: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    """Build a tensor whose Tucker ranks are known, from factors that are not orthonormal."""
    core = random_tensor(ranks, seed)
    factors = [
        random_tensor((size, rank), seed + 1 + i)
        for i, (size, rank) in enumerate(zip((heads, tokens, dim), ranks, strict=True))
    ]
    return torch.einsum("abc,ha,tb,dc->htd", core, *factors)


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, int, int], Ranks, int]:
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 12)), draw(st.integers(1, 9)))
    head = draw(st.one_of(st.none(), st.integers(1, shape[0])))
    ranks = ranks_at(shape, draw(st.floats(0.05, 1.0)), head)
    if head is not None and head > ranks.token * ranks.embedding:  # a rank that could hold nothing
        ranks = ranks_at(shape, 1.0)
    return shape, ranks, draw(st.integers(0, 99))


@given(cases())
def test_errors_and_bytes_are_those_of_direct_reconstruction(case: tuple[tuple[int, int, int], Ranks, int]) -> None:
    shape, ranks, seed = case
    tensor = random_tensor(shape, seed)
    found = decompose(tensor, ranks)
    head = torch.eye(shape[0], dtype=torch.float64) if found.head is None else found.head
    direct = torch.einsum("abc,ha,tb,dc->htd", found.core, head, found.token, found.embedding)
    assert_close(found.reconstruct(), direct)
    error = float((tensor - direct).norm() / tensor.norm())
    assert found.relative_error == pytest.approx(error, abs=1e-12)
    assert found.relative_error <= 1 + 1e-12
    # For orthonormal factors the error follows from the core's norm alone.
    remaining = max(0.0, 1 - float(found.core.norm() / tensor.norm()) ** 2)
    assert found.relative_error**2 == pytest.approx(remaining, abs=1e-10)
    for factor in (found.head, found.token, found.embedding):
        if factor is not None:
            assert_close(factor.T @ factor, torch.eye(factor.shape[1], dtype=torch.float64))
    stored = [found.core, found.token, found.embedding, *([] if found.head is None else [found.head])]
    assert found.num_bytes == 8 * sum(part.numel() for part in stored)
    assert found.full_bytes == 8 * tensor.numel()
    assert found.compression_ratio == pytest.approx(1 - found.num_bytes / found.full_bytes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", [None, 2])
def test_a_tensor_of_low_rank_is_exact_at_its_ranks_and_not_below(head: int | None, dtype: torch.dtype) -> None:
    tensor = low_rank(4, 63, 20, (2, 5, 4)).to(dtype)
    exact = decompose(tensor, Ranks(token=5, embedding=4, head=head))
    rounding = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    assert exact.relative_error < rounding
    assert exact.num_bytes == tensor.element_size() * exact.ranks.entries((4, 63, 20))
    assert decompose(tensor, Ranks(token=4, embedding=4, head=head)).relative_error > 10 * rounding
    assert decompose(tensor, Ranks(token=5, embedding=3, head=head)).relative_error > 10 * rounding


def test_full_ranks_lose_nothing_and_larger_ones_lose_less() -> None:
    tensor = random_tensor((3, 24, 16))
    assert decompose(tensor, Ranks(token=24, embedding=16, head=3)).relative_error < 1e-12
    errors = [decompose(tensor, ranks_at((3, 24, 16), fraction)).relative_error for fraction in (0.1, 0.3, 0.6, 0.9)]
    assert errors == sorted(errors, reverse=True)


def test_iterations_improve_on_the_higher_order_svd() -> None:
    tensor, ranks = random_tensor((3, 40, 16)), Ranks(token=8, embedding=5, head=2)
    start = decompose(tensor, ranks, iterations=0)
    # The higher-order SVD by hand: leading left singular vectors of each unfolding.
    factors = []
    for mode, rank in enumerate((2, 8, 5)):
        unfolded = tensor.movedim(mode, 0).flatten(1)
        factors.append(torch.linalg.svd(unfolded, full_matrices=False).U[:, :rank])
    core = torch.einsum("htd,ha,tb,dc->abc", tensor, *factors)
    assert start.relative_error == pytest.approx(relative_error(tensor, reconstruct(core, *factors)), abs=1e-12)
    assert decompose(tensor, ranks).relative_error < start.relative_error


def test_the_same_tensor_gives_the_same_numbers() -> None:
    tensor = random_tensor((2, 30, 12))
    first, second = (decompose(tensor, Ranks(token=6, embedding=4, head=2)) for _ in range(2))
    assert torch.equal(first.core, second.core)
    assert torch.equal(first.token, second.token)


@pytest.mark.parametrize("head", [None, 1])
def test_a_zero_tensor_has_no_error(head: int | None) -> None:
    found = decompose(torch.zeros(2, 5, 4), Ranks(token=2, embedding=2, head=head))
    assert found.relative_error == 0
    assert not found.reconstruct().any()


def test_relative_error_at_its_ends() -> None:
    some = torch.ones(2, 2)
    assert relative_error(torch.zeros(2, 2), torch.zeros(2, 2)) == 0
    assert relative_error(torch.zeros(2, 2), some) == float("inf")
    assert relative_error(some, torch.zeros(2, 2)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (Ranks(token=6, embedding=2), "the token rank must be at most 4, .* product 4 of the other ranks"),
        (Ranks(token=5, embedding=9), "the embedding rank must be at most 8"),
        (Ranks(token=4, embedding=4, head=3), "the head rank must be at most 2"),
        (Ranks(token=1, embedding=1, head=2), "the head rank must be at most 1"),
    ],
)
def test_ranks_that_a_tensor_cannot_have_are_refused(ranks: Ranks, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decompose(torch.ones(2, 5, 8), ranks)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="the token rank must be a whole number of at least 1; got 0"):
        Ranks(token=0, embedding=1)
    with pytest.raises(ValueError, match="the head rank must be a whole number"):
        Ranks(token=1, embedding=1, head=0)
    with pytest.raises(ValueError, match="must have shape"):
        decompose(torch.ones(5, 8), Ranks(token=1, embedding=1))
    with pytest.raises(ValueError, match="must be finite"):
        decompose(torch.full((1, 2, 2), torch.nan), Ranks(token=1, embedding=1))
    with pytest.raises(ValueError, match="iterations must be at least 0"):
        decompose(torch.ones(1, 2, 2), Ranks(token=1, embedding=1), iterations=-1)
    with pytest.raises(ValueError, match="fraction must lie in"):
        ranks_at((1, 2, 2), 0.0)


@given(
    st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 20)),
    st.floats(0.01, 1.0),
)
def test_ranks_at_a_fraction_can_always_be_had(shape: tuple[int, int, int], fraction: float) -> None:
    ranks_at(shape, fraction).check(shape)
