"""compact as an operator: Triton on a GPU (or in its interpreter), the reference on the CPU."""

from __future__ import annotations

from itertools import accumulate

import torch

from kvcompress.kernels.compact.reference import Packed, RowPlan, Slots, compact_reference
from kvcompress.kernels.dispatch import interpreting

_Arrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@torch.library.custom_op("kvcompress::compact", mutates_args=(), device_types="cpu")
def _compact(
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    scores: torch.Tensor,
    plan: torch.Tensor,
    chosen: torch.Tensor | None,
    total: int,
    longest: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    if interpreting():
        arrays: _Arrays = _compact_triton(keys, values, positions, scores, plan, chosen, total, longest)
        return arrays
    row_plan = RowPlan(*plan[1:, :-1].tolist())
    slots = compact_reference(keys, values, positions, scores, row_plan, chosen).slots
    return slots.keys.contiguous(), slots.values.contiguous(), slots.positions, slots.scores


@_compact.register_kernel("cuda")
def _compact_triton(
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    scores: torch.Tensor,
    plan: torch.Tensor,
    chosen: torch.Tensor | None,
    total: int,
    longest: int,
) -> _Arrays:
    from kvcompress.kernels.compact.launch import launch_compact  # Triton only where a kernel runs

    return launch_compact(keys, values, positions, scores, plan, chosen, total, longest)


@_compact.register_fake
def _compact_fake(
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    scores: torch.Tensor,
    plan: torch.Tensor,
    chosen: torch.Tensor | None,
    total: int,
    longest: int,
) -> _Arrays:
    return (
        keys.new_empty(total, keys.shape[-1]),
        values.new_empty(total, values.shape[-1]),
        positions.new_empty(total),
        scores.new_empty(total, dtype=scores.dtype if scores.shape[-1] else torch.float32),
    )


def compact(
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    scores: torch.Tensor,
    plan: RowPlan,
    chosen: torch.Tensor | None = None,
) -> Packed:
    """Gathers each row's head and tail into its slots; what is left is free (zeros, position -1, score 0).

    Args:
        keys: ``[batch, kv_heads, tokens, head_dim]`` of any strides, or ``[tokens, head_dim]``; a dtype of 1, 2, 4 or 8
            bytes.
        values: the same with ``value_dim``.
        positions: int64, the leading shape of ``keys``; -1 copies a free slot.
        scores: float32, the leading shape of ``keys``, or fewer tokens: those beyond have score 0.
        plan: where the slots of each row come from; a row's tokens all come from one (batch entry, kv head).
        chosen: int64 ``[rows, most]``, places in the source of each row's head; None: its first ``head`` places.

    Returns:
        :class:`Packed`; the input is never copied whole, unless its last axis is not contiguous.

    Raises:
        ValueError: keys or values of neither two nor four axes, or of a dtype of another size (Triton only).
    """
    table = _plan_on(keys.device, plan)
    arrays = _compact(keys, values, positions, scores, table, chosen, sum(plan.lengths), max(plan.lengths, default=0))
    # On a GPU the offsets stay a view: a copy of their own would be one more launch, and the 40 bytes a row that they
    # keep alive are little beside the row's slots (up to 9 rows nothing: memory comes in pieces of 512 bytes).
    offsets = table[0] if table.is_cuda else table[0].clone()
    return Packed(Slots(*arrays), offsets)


def _plan_on(device: torch.device, plan: RowPlan) -> torch.Tensor:
    """The plan as one int64 tensor ``[6, rows + 1]``, copied once and without waiting; row 0 are the rows' offsets.

    Nothing is in the last place of the other rows.
    """
    # Pinned memory: from other memory the copy would make the host wait for the device.
    table = torch.empty(6, len(plan.lengths) + 1, dtype=torch.int64, pin_memory=device.type == "cuda")
    lines = table.numpy()  # which takes nested lists three times as fast as torch
    lines[0] = [0, *accumulate(plan.lengths)]
    lines[1:, :-1] = plan
    return table.to(device, non_blocking=True)
