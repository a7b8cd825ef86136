"""Packs chosen tokens of many rows into one contiguous slot array."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Slots(NamedTuple):
    """Parallel arrays over slots.

    Attributes:
        keys: ``[slots, head_dim]``.
        values: ``[slots, value_dim]``.
        positions: int64 ``[slots]``, absolute position of the token, -1 for a free slot.
        scores: float32 ``[slots]``.
    """

    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    scores: torch.Tensor


def compact_reference(
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    scores: torch.Tensor,
    source: torch.Tensor,
) -> Slots:
    """Gathers token ``source[i]`` into slot ``i``; a negative source leaves the slot free (zeros, position -1).

    Args:
        keys: ``[batch, kv_heads, tokens, head_dim]`` of any strides, or ``[tokens, head_dim]``.
        values: the same with ``value_dim``.
        positions: int64, the leading shape of ``keys``.
        scores: float32, the leading shape of ``keys``.
        source: int64 ``[slots]``, index into the flattened leading axes.

    Returns:
        :class:`Slots` in newly allocated memory; the input is never copied whole.
    """
    free = source < 0
    index = torch.unravel_index(source.clamp(min=0), positions.shape)
    return Slots(
        keys=keys[index].masked_fill_(free[:, None], 0),
        values=values[index].masked_fill_(free[:, None], 0),
        positions=positions[index].masked_fill_(free, -1),
        scores=scores[index].masked_fill_(free, 0),
    )
