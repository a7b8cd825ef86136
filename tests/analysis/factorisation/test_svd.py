"""The SVD baseline: errors as direct truncation says, and never more bytes than it was given."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.analysis.factorisation.svd import SvdBaseline


def random_tensor(heads: int, tokens: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(heads, tokens, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def truncated(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return u[..., :rank] * s[..., None, :rank] @ v[..., :rank, :]


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_errors_are_those_of_direct_truncation(rank: int) -> None:
    tensor = random_tensor(3, 24, 6)
    baseline = SvdBaseline(tensor)
    joint = tensor.transpose(0, 1).flatten(1)
    wanted = float((joint - truncated(joint, rank)).norm() / joint.norm())
    assert baseline.at("joint", rank).relative_error == pytest.approx(wanted, abs=1e-12)
    wanted = float((tensor - truncated(tensor, rank)).norm() / tensor.norm())
    assert baseline.at("per_head", rank).relative_error == pytest.approx(
        wanted, abs=1e-7
    )  # a root of 1e-16 at full rank


def test_a_matrix_of_low_rank_is_exact_at_its_rank() -> None:
    tensor = random_tensor(1, 40, 2)[0] @ random_tensor(1, 2, 24, seed=1)[0]  # [T, K * D] of rank 2
    baseline = SvdBaseline(tensor.view(40, 3, 8).transpose(0, 1))
    assert baseline.at("joint", 2).relative_error < 1e-7
    assert baseline.at("joint", 1).relative_error > 0.01


@given(
    st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 9)),
    st.integers(0, 4000),
    st.sampled_from(["joint", "per_head"]),
)
def test_it_takes_the_largest_rank_that_fits(shape: tuple[int, int, int], most_bytes: int, form: str) -> None:
    heads, tokens, dim = shape
    baseline = SvdBaseline(random_tensor(*shape).half())
    found = baseline.within(form, most_bytes)  # type: ignore[arg-type]
    entries = tokens + heads * dim if form == "joint" else heads * (tokens + dim)
    largest = min(tokens, heads * dim) if form == "joint" else min(tokens, dim)
    rank = min(most_bytes // (2 * entries), largest)
    if rank == 0:
        assert found is None
        return
    assert found is not None
    assert found.rank == rank
    assert found.num_bytes == 2 * entries * rank <= most_bytes
    assert 0 <= found.relative_error <= 1
    best = baseline.best_error(most_bytes)
    assert best is not None
    assert best <= found.relative_error


def test_nothing_fits_into_no_bytes_and_zero_has_no_error() -> None:
    assert SvdBaseline(random_tensor(2, 5, 4)).best_error(10) is None
    assert SvdBaseline(torch.zeros(2, 5, 4)).at("joint", 1).relative_error == 0


def test_a_rank_that_is_not_there_is_refused() -> None:
    baseline = SvdBaseline(random_tensor(2, 5, 4))
    for rank in (0, 6):
        with pytest.raises(ValueError, match=r"rank must be in \[1, 5\] for the joint SVD"):
            baseline.at("joint", rank)
