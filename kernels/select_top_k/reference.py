"""Exact, deterministic selection of the k highest scores per row."""

from __future__ import annotations

import torch


def select_top_k_reference(
    scores: torch.Tensor,
    k: int,
    *,
    row_k: torch.Tensor | None = None,
    row_offsets: torch.Tensor | None = None,
) -> torch.Tensor:
    """Indices of the ``k`` highest scores of each row, best first.

    The order is total, so the result depends on nothing but the scores: higher score first, equal scores
    (``-0.0`` equals ``0.0``) by lower index, NaN below ``-inf``.

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
        return _select_ragged(scores, k, row_k, row_offsets)
    check_k(k, scores.shape[-1])
    if k == 0:
        return scores.new_zeros((*scores.shape[:-1], 0), dtype=torch.int64)
    chosen = torch.topk(_ordering_key(scores), k, dim=-1, sorted=True).indices
    if row_k is None:
        return chosen
    return chosen.masked_fill_(torch.arange(k, device=scores.device) >= row_k.view(*scores.shape[:-1], 1), -1)


def check_k(k: int, count: int) -> None:
    """Raises ValueError unless ``0 <= k <= count``."""
    if not 0 <= k <= count:
        raise ValueError(f"k must lie in [0, {count}] (the number of scores in a row); got {k}")


def _select_ragged(scores: torch.Tensor, k: int, row_k: torch.Tensor | None, row_offsets: torch.Tensor) -> torch.Tensor:
    """Row after row: each is a slice of the flat array."""
    bounds = row_offsets.tolist()
    wanted = [k] * (len(bounds) - 1) if row_k is None else row_k.tolist()
    chosen = torch.full((len(wanted), max(k, 0)), -1, dtype=torch.int64, device=scores.device)
    for row, (start, end, want) in enumerate(zip(bounds, bounds[1:], wanted, strict=False)):
        take = min(want, k, end - start)
        chosen[row, :take] = select_top_k_reference(scores[start:end], take)
    return chosen


def _ordering_key(scores: torch.Tensor) -> torch.Tensor:
    """Unique int64 keys ``[..., count]`` in the order of (score, -index): the float's bits above, the index below."""
    bits = (scores.float() + 0.0).view(torch.int32).to(torch.int64)  # + 0.0 turns -0.0 into +0.0
    ordered = torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))
    ordered = torch.where(scores.isnan(), torch.full_like(ordered, -(2**31) + 1), ordered)
    index = torch.arange(scores.shape[-1], device=scores.device)
    return (ordered << 32) - index
