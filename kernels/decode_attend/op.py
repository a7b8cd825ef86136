"""decode_attend as an operator: Triton on a GPU (or in its interpreter), the reference on the CPU."""

from __future__ import annotations

from itertools import groupby
from typing import cast

import torch

from kvcompress.kernels.compact.reference import Slots
from kvcompress.kernels.decode_attend.reference import Eviction, EvictionOrder, Run, decode_attend_reference
from kvcompress.kernels.dispatch import interpreting
from kvcompress.kernels.window_scores.reference import AttentionSpec


@torch.library.custom_op(
    "kvcompress::decode_attend",
    mutates_args=("keys", "values", "positions", "scores", "next_slot", "arrivals"),
    device_types=("cpu", "cuda"),
)
def _decode_attend(
    query: torch.Tensor,
    new_key: torch.Tensor,
    new_value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    scores: torch.Tensor,
    next_slot: torch.Tensor,
    row_offsets: torch.Tensor,
    longest: int,
    position: int,
    position_tensor: torch.Tensor | None,
    new_score: torch.Tensor | None,
    row_start: torch.Tensor | None,
    arrivals: torch.Tensor | None,
    scaling: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
    sliding_window: int | None,
    order: str,
    decay: float,
    window_size: int,
    sink_tokens: int,
    keep_prompt: bool,
    prompt_end: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    slots = Slots(keys, values, positions, scores)
    at = position if position_tensor is None else position_tensor
    spec = AttentionSpec(scaling, softcap, sinks, sliding_window)
    eviction = Eviction(cast("EvictionOrder", order), decay, window_size, sink_tokens, keep_prompt)
    if query.device.type == "cpu" and not interpreting():
        return decode_attend_reference(
            query, new_key, new_value, slots, next_slot, row_offsets, _runs(row_offsets), at,
            spec=spec, eviction=eviction, new_score=new_score, row_start=row_start, prompt_end=prompt_end,
        )  # fmt: skip
    from kvcompress.kernels.decode_attend.launch import launch_decode_attend  # Triton only where a kernel runs

    return launch_decode_attend(
        query, new_key, new_value, slots, next_slot, row_offsets, longest, at,
        spec=spec, eviction=eviction, new_score=new_score, row_start=row_start, prompt_end=prompt_end,
        arrivals=arrivals,
    )  # fmt: skip


@_decode_attend.register_fake
def _decode_attend_fake(
    query: torch.Tensor,
    new_key: torch.Tensor,
    new_value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    *_: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    output = query.new_empty(*query.shape[:2], new_value.shape[-1])
    return output, query.new_empty(positions.shape[0], dtype=torch.float32)


def decode_attend(
    query: torch.Tensor,
    new_key: torch.Tensor,
    new_value: torch.Tensor,
    slots: Slots,
    next_slot: torch.Tensor,
    row_offsets: torch.Tensor,
    runs: tuple[Run, ...],
    position: int | torch.Tensor,
    *,
    spec: AttentionSpec,
    eviction: Eviction,
    new_score: torch.Tensor | None = None,
    row_start: torch.Tensor | None = None,
    prompt_end: int = 0,
    full: bool = False,
    arrivals: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs one decode step in place.

    Args:
        query: ``[rows, group, head_dim]``, one row per (batch, kv head); for the kernels float32, float16 or bfloat16,
            the dtype of keys and values.
        new_key: ``[rows, head_dim]``, rotary embedding applied.
        new_value: ``[rows, value_dim]``.
        slots: the store; all four arrays are modified.
        next_slot: int64 ``[rows]``, the free slot of each row; replaced by the next one.
        row_offsets: int64 ``[rows + 1]``, first slot of each row (CSR).
        runs: the rows in order, grouped by equal length.
        position: absolute position of the new token (int, or int64 scalar on the device).
        spec: scaling, softcap, sinks, sliding window.
        eviction: how the next victim is chosen. Equal scores: the lower slot.
        new_score: float32 ``[rows]``, stored score of the new token; None: zero.
        row_start: int64 ``[rows]``, position of each row's first token; None: zeros. Needed for sinks.
        prompt_end: tokens at positions below are the prompt (for ``keep_prompt``).
        full: ignored: the kernel reads the positions anyway.
        arrivals: int32 ``[rows]`` zeros, scratch of the one-launch variant, which is used where it is given and no row
            is very long; zeros again afterwards.

    Returns:
        ``(output [rows, group, value_dim], probability [slots])``: the attention output in the query's dtype, and the
        float32 mean over the group of each slot's probability.

    Raises:
        ValueError: a dtype, a size or a layout that the kernels do not take (where they run).
    """
    on_device = isinstance(position, torch.Tensor)
    output, probability = _decode_attend(
        query, new_key, new_value, *slots, next_slot, row_offsets,
        max(run.length for run in runs),
        0 if on_device else position,
        position if on_device else None,
        new_score, row_start, arrivals,
        spec.scaling, spec.softcap, spec.sinks, spec.sliding_window,
        eviction.order, eviction.decay, eviction.window_size, eviction.sink_tokens, eviction.keep_prompt, prompt_end,
    )  # fmt: skip
    return output, probability


def _runs(row_offsets: torch.Tensor) -> tuple[Run, ...]:
    """The rows grouped by equal length, from offsets on the CPU."""
    offsets = row_offsets.tolist()
    runs: list[Run] = []
    for length, rows in groupby(range(len(offsets) - 1), key=lambda row: offsets[row + 1] - offsets[row]):
        first, *others = rows
        runs.append(Run(first, 1 + len(others), offsets[first], length))
    return tuple(runs)
