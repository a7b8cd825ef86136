"""select_top_k: exact, deterministic, ties to the lower index."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.kernels.select_top_k.reference import select_top_k_reference

INF, NAN = float("inf"), float("nan")


def by_sorting(row: list[float]) -> list[int]:
    """The order as the docstring states it, by Python's stable sort."""
    values = np.asarray(row, dtype=np.float32).tolist()
    return sorted(range(len(values)), key=lambda i: (1, 0.0) if values[i] != values[i] else (0, -values[i]))


@given(
    st.lists(
        st.one_of(st.sampled_from([0.0, -0.0, 1.0, INF, -INF, NAN, 1e-45, -1e-45]), st.floats(width=32)),
        min_size=1,
        max_size=40,
    ),
    st.data(),
)
def test_equals_a_stable_sort(row, data) -> None:
    k = data.draw(st.integers(0, len(row)))
    assert select_top_k_reference(torch.tensor([row], dtype=torch.float32), k)[0].tolist() == by_sorting(row)[:k]


@pytest.mark.parametrize("count", [1, 63, 111, 1000, 5000])
def test_random_rows_with_ties(count) -> None:
    scores = torch.randint(0, max(2, count // 3), (2, 3, count)).float()
    for k in (0, 1, count // 2, count):
        got = select_top_k_reference(scores, k)
        wanted = scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("k", [-1, 6])
def test_k_out_of_range(k) -> None:
    with pytest.raises(ValueError, match=r"k must lie in \[0, 5\].*got"):
        select_top_k_reference(torch.zeros(2, 5), k)


def test_rows_take_a_prefix_of_their_own_length() -> None:
    scores = torch.rand(2, 3, 20)
    wanted = torch.tensor([5, 0, 1, 7, 7, 3])
    got = select_top_k_reference(scores, 7, row_k=wanted).view(6, 7)
    whole = select_top_k_reference(scores, 7).view(6, 7)
    for row, count in enumerate(wanted.tolist()):
        assert torch.equal(got[row, :count], whole[row, :count])
        assert (got[row, count:] == -1).all()


def test_ragged_rows_are_selected_each_by_itself() -> None:
    scores, offsets = torch.randint(0, 5, (30,)).float(), torch.tensor([0, 4, 4, 15, 30])
    wanted = torch.tensor([6, 2, 3, 0])
    got = select_top_k_reference(scores, 6, row_k=wanted, row_offsets=offsets)
    for row, count in enumerate(wanted.tolist()):
        own = scores[offsets[row] : offsets[row + 1]]
        count = min(count, len(own))
        assert got[row, :count].tolist() == by_sorting(own.tolist())[:count]
        assert (got[row, count:] == -1).all()
