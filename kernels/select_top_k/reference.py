"""Exact, deterministic selection of the k highest scores per row."""

from __future__ import annotations

import torch


def select_top_k_reference(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Indices of the ``k`` highest scores of each row, best first.

    The order is total, so the result depends on nothing but the scores: higher score first, equal scores
    (``-0.0`` equals
    ``0.0``) by lower index, NaN below ``-inf``.

    Args:
        scores: float32 ``[..., count]``.
        k: how many, ``0 <= k <= count``. A row that needs fewer takes a prefix.

    Returns:
        int64 ``[..., k]``.

    Raises:
        ValueError: ``k`` outside ``[0, count]``.
    """
    count = scores.shape[-1]
    if not 0 <= k <= count:
        raise ValueError(f"k must lie in [0, {count}] (the number of scores in a row); got {k}")
    if k == 0:
        return scores.new_zeros((*scores.shape[:-1], 0), dtype=torch.int64)
    return torch.topk(_ordering_key(scores), k, dim=-1, sorted=True).indices


def _ordering_key(scores: torch.Tensor) -> torch.Tensor:
    """Unique int64 keys ``[..., count]`` in the order of (score, -index): the float's bits above, the index below."""
    bits = (scores.float() + 0.0).view(torch.int32).to(torch.int64)  # + 0.0 turns -0.0 into +0.0
    ordered = torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))
    ordered = torch.where(scores.isnan(), torch.full_like(ordered, -(2**31) + 1), ordered)
    index = torch.arange(scores.shape[-1], device=scores.device)
    return (ordered << 32) - index
