"""Step 4, *compact*: packs the chosen tokens and the window into a slot store."""

from __future__ import annotations

import torch

from kvcompress.engine.store import SlotStore
from kvcompress.kernels.compact.reference import RowPlan
from kvcompress.kernels.dispatch import operation


def compact(
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    scores: torch.Tensor,
    chosen: torch.Tensor,
    *,
    held: list[int],
    window: int,
    spare: int,
    backend: str,
) -> SlotStore:
    """Packs each row: its chosen tokens best first, the window, free slots.

    Args:
        keys: ``[batch, kv_heads, tokens, head_dim]``, chronological, of any strides.
        values: ``[batch, kv_heads, tokens, value_dim]``.
        positions: int64 ``[batch, kv_heads, tokens]``, -1 for no token (its slot becomes a free one).
        scores: float32 ``[batch, kv_heads, tokens - window]``; the window has none.
        chosen: int64 ``[batch, kv_heads, most]``, best first.
        held: how many of them each row keeps, ``[batch * kv_heads]``.
        window: tokens at the end that every row keeps.
        spare: free slots at the end of each row, at least one.
        backend: ``"torch"`` or ``"triton"``.
    """
    batch, heads, tokens = positions.shape
    rows = batch * heads
    plan = RowPlan(
        lengths=[count + window + spare for count in held],
        source=[row * tokens for row in range(rows)],
        head=held,
        tail_start=[tokens - window] * rows,
        tail=[window] * rows,
    )
    packed = operation("compact", backend)(keys, values, positions, scores, plan, chosen.reshape(rows, -1))
    return SlotStore(packed, plan.lengths, heads, backend)
