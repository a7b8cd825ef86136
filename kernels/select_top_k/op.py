"""select_top_k as an operator: Triton on a GPU (or in its interpreter), the reference on the CPU."""

from __future__ import annotations

import torch

from kvcompress.kernels.dispatch import interpreting
from kvcompress.kernels.select_top_k.reference import select_top_k_reference


@torch.library.custom_op("kvcompress::select_top_k", mutates_args=(), device_types="cpu")
def _select_top_k(
    scores: torch.Tensor, k: int, row_k: torch.Tensor | None, row_offsets: torch.Tensor | None
) -> torch.Tensor:
    if interpreting():
        chosen: torch.Tensor = _select_top_k_triton(scores, k, row_k, row_offsets)
        return chosen
    return select_top_k_reference(scores, k, row_k=row_k, row_offsets=row_offsets)


@_select_top_k.register_kernel("cuda")
def _select_top_k_triton(
    scores: torch.Tensor, k: int, row_k: torch.Tensor | None, row_offsets: torch.Tensor | None
) -> torch.Tensor:
    from kvcompress.kernels.select_top_k.launch import launch_select_top_k  # Triton only where a kernel runs

    return launch_select_top_k(scores, k, row_k, row_offsets)


@_select_top_k.register_fake
def _select_top_k_fake(
    scores: torch.Tensor, k: int, row_k: torch.Tensor | None, row_offsets: torch.Tensor | None
) -> torch.Tensor:
    leading = scores.shape[:-1] if row_offsets is None else (row_offsets.shape[0] - 1,)
    return scores.new_empty((*leading, k), dtype=torch.int64)


def select_top_k(
    scores: torch.Tensor,
    k: int,
    *,
    row_k: torch.Tensor | None = None,
    row_offsets: torch.Tensor | None = None,
) -> torch.Tensor:
    """Indices of the ``k`` highest scores of each row, best first: a total order, defined by the reference.

    Args:
        scores: float32 ``[..., count]``; with ``row_offsets`` flat, ``[slots]``.
        k: how many at most, ``0 <= k <= count``.
        row_k: int64 ``[rows]``, how many each row wants, not more than ``k``; None: all want ``k``.
        row_offsets: int64 ``[rows + 1]``, first score of each row of a ragged array; indices count from there.

    Returns:
        int64 ``[..., k]`` (``[rows, k]`` for ragged rows); places beyond what a row wants, or has, hold -1.

    Raises:
        ValueError: ``k`` outside ``[0, count]``.
    """
    if row_offsets is not None:
        k = max(k, 0)  # a ragged array has no count to hold k against
    chosen: torch.Tensor = _select_top_k(scores, k, row_k, row_offsets)
    return chosen
