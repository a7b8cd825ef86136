"""Packs chosen tokens of many rows into one contiguous slot array."""

from __future__ import annotations

from itertools import accumulate
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


class RowPlan(NamedTuple):
    """Where each new row's slots come from: a head, a tail, then free slots. Host-side counts, one per new row.

    Attributes:
        lengths: slots of the row, ``head + tail`` at least.
        source: index of the first token of the row's source, over the flattened leading axes of the arrays.
        head: how many slots come first; their tokens are the chosen ones, or the source's first.
        tail_start: place in the source of the tail's first token.
        tail: how many slots follow the head.
    """

    lengths: list[int]
    source: list[int]
    head: list[int]
    tail_start: list[int]
    tail: list[int]


class Packed(NamedTuple):
    """What ``compact`` returns.

    Attributes:
        slots: newly allocated arrays over ``sum(lengths)`` slots.
        row_offsets: int64 ``[rows + 1]``, first slot of each row (CSR).
    """

    slots: Slots
    row_offsets: torch.Tensor


def compact_reference(
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    scores: torch.Tensor,
    plan: RowPlan,
    chosen: torch.Tensor | None = None,
) -> Packed:
    """Gathers each row's head and tail into its slots; what is left is free (zeros, position -1, score 0).

    Args:
        keys: ``[batch, kv_heads, tokens, head_dim]`` of any strides, or ``[tokens, head_dim]``.
        values: the same with ``value_dim``.
        positions: int64, the leading shape of ``keys``; -1 copies a free slot.
        scores: float32, the leading shape of ``keys``, or fewer tokens: those beyond have score 0.
        plan: where the slots of each row come from.
        chosen: int64 ``[rows, most]``, places in the source of each row's head; None: its first ``head`` places.

    Returns:
        :class:`Packed`; the input is never copied whole.
    """
    offsets = torch.tensor([0, *accumulate(plan.lengths)], dtype=torch.int64, device=keys.device)
    row = torch.repeat_interleave(offsets.diff(), output_size=sum(plan.lengths))
    place = torch.arange(row.numel(), device=keys.device) - offsets[row]
    first, head, tail_start, tail = torch.tensor(plan[1:], dtype=torch.int64, device=keys.device)[:, row]
    token = torch.where(place < head, place, place - head + tail_start)
    if chosen is not None and chosen.shape[-1]:
        token = torch.where(place < head, chosen[row, place.clamp(max=chosen.shape[-1] - 1)], token)
    free = place >= head + tail
    index = torch.unravel_index((first + token).masked_fill_(free, 0), positions.shape)
    scored = scores.shape[-1]
    unscored = index[-1] >= scored
    score_index = (*index[:-1], index[-1].clamp(max=max(scored - 1, 0)))
    slots = Slots(
        keys=keys[index].masked_fill_(free[:, None], 0),
        values=values[index].masked_fill_(free[:, None], 0),
        positions=positions[index].masked_fill_(free, -1),
        scores=scores[score_index].masked_fill_(free | unscored, 0) if scored else keys.new_zeros(row.shape).float(),
    )
    return Packed(slots, offsets)
