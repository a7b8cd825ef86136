"""Step 3, *select*: the best tokens of each row, exactly and deterministically."""

from __future__ import annotations

import torch

from kvcompress.kernels.dispatch import operation


def mark_scores(
    scores: torch.Tensor, positions: torch.Tensor | None, row_start: torch.Tensor | None, sink_tokens: int
) -> torch.Tensor:
    """Puts places without a token last and the sinks first.

    Args:
        scores: float32 ``[batch, kv_heads, scored]``.
        positions: int64 ``[batch, kv_heads, scored]``, -1 where there is no token; None: ``0..``.
        row_start: int64 ``[batch]`` position of each row's first token; None: zeros.
        sink_tokens: how many first tokens are always kept.

    Returns:
        Scores with ``-inf`` for no token and ``+inf`` for sinks.
    """
    if positions is None and sink_tokens == 0:
        return scores
    if positions is None:
        positions = torch.arange(scores.shape[-1], device=scores.device)[None, None]
    if sink_tokens:
        start = 0 if row_start is None else row_start[:, None, None]
        scores = scores.masked_fill(positions < start + sink_tokens, float("inf"))
    return scores.masked_fill(positions < 0, float("-inf"))


def select(scores: torch.Tensor, held: list[int], backend: str) -> torch.Tensor:
    """Indices of the best tokens of each row, best first; equal scores by lower index.

    Args:
        scores: float32 ``[batch, kv_heads, scored]``.
        held: how many each row keeps, ``[batch * kv_heads]``.
        backend: ``"torch"`` or ``"triton"``.

    Returns:
        int64 ``[batch, kv_heads, max(held)]``; a row uses its first ``held`` ones, and what follows says nothing.
    """
    row_k = None
    if min(held) < max(held):  # pinned: from other memory the copy would make the host wait for the device
        row_k = torch.tensor(held, pin_memory=scores.is_cuda).to(scores.device, non_blocking=True)
    chosen: torch.Tensor = operation("select_top_k", backend)(scores, max(held), row_k=row_k)
    return chosen


def select_as_torch(scores: torch.Tensor, k: int) -> torch.Tensor:
    """``torch.topk`` itself, for ``CakeReference`` alone: equal scores come in torch's order, as for the authors."""
    return torch.topk(scores, k, dim=-1).indices
