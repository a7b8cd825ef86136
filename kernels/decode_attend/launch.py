"""Launches the kernels of decode_attend: grid, scratch and compile-time arguments. Nothing waits for the device."""

from __future__ import annotations

from typing import Any, Final

import torch
import triton

from kvcompress.kernels.compact.reference import Slots
from kvcompress.kernels.configuration import COMPILE_OPTIONS
from kvcompress.kernels.decode_attend import kernel
from kvcompress.kernels.decode_attend.reference import Eviction
from kvcompress.kernels.dispatch import MAX_HEAD_DIM, interpreting
from kvcompress.kernels.tiles import Tile, architecture, power_of_two, tile
from kvcompress.kernels.window_scores.reference import AttentionSpec

LEAST_SPLIT: Final = 128  # slots: with fewer per program, combining the splits costs more than they gain
MOST_SPLITS: Final = 64  # the eight rows of one sequence then fill a large GPU four times
CHUNK: Final = 8192  # slots that one program finishes; a store of longer rows takes a third launch
PICK_WARPS: Final = 1
_WARP_ELEMENTS: Final = 512  # of a finishing program's tile of logits or outputs, per warp
_FLOAT32_BLOCK: Final = 32  # dimensions whose products are added up at once
_UNBOUNDED: Final = 2**31 - 1  # a sliding window that no position leaves
_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)

# What the attending kernel takes for the finish where another launch does it: the same for every order of eviction.
WITHOUT_FINISH: Final[dict[str, Any]] = {
    **dict.fromkeys(("output_ptr", "probability_ptr", "row_start_ptr", "sinks_ptr", "arrivals_ptr")),
    **dict.fromkeys(("ALL_HEADS", "OUTPUT_HEADS", "SLOT_BLOCK", "ORDER")),
}


def decode_tile(arch: str, dtype: torch.dtype, head_dim: int, value_dim: int, group: int) -> Tile:
    """The tile of the attending kernel; its ``block_n`` divides :data:`LEAST_SPLIT`."""
    return tile("decode_attend", architecture=arch, dtype=dtype, head_dim=max(head_dim, value_dim), group=group)


def attend_stages(cut: Tile, arch: str, dtype: torch.dtype, one_launch: bool) -> int:
    """Depth of the attending kernel's pipeline.

    On NVIDIA in 16 bits the larger kernel of the one-launch variant has none: with one, the assembler of some version
    of Triton (3.6 to 3.9) keeps part of its state on the stack. In float32, and on AMD, it is the other way round.
    """
    return 1 if one_launch and dtype.itemsize == 2 and arch != "gfx942" else cut.stages


def row_constants(value_dim: int, group: int) -> dict[str, Any]:
    """Compile-time arguments of both kernels."""
    return {
        "GROUP": group,
        "VALUE_DIM": value_dim,
        "VALUE_PAD": power_of_two(value_dim, 16),
        "LEAST_SPLIT": LEAST_SPLIT,
        "MOST_SPLITS": MOST_SPLITS,
    }


def attend_constants(cut: Tile, head_dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """Compile-time arguments of the attending kernel alone."""
    padded = power_of_two(head_dim, 16)
    return {
        "HEADS": cut.heads,
        "HEAD_DIM": head_dim,
        "HEAD_PAD": padded,
        "BLOCK_D": min(padded, _FLOAT32_BLOCK) if dtype == torch.float32 else padded,
        "BLOCK_N": cut.block_n,
        "UPCAST": interpreting(),
    }


def finish_constants(value_dim: int, group: int, order: str, warps: int) -> dict[str, Any]:
    """Compile-time arguments of the finish, in whichever kernel it runs.

    Both take the tile's warps: sums are then added up in the same order, and one launch equals two to the last bit.
    """
    heads, elements = power_of_two(group), _WARP_ELEMENTS * warps
    return {
        "ALL_HEADS": heads,
        "OUTPUT_HEADS": min(heads, elements // power_of_two(value_dim, 16)),
        "SLOT_BLOCK": min(1024, elements // heads),
        "ORDER": order,
    }


def launch_decode_attend(
    query: torch.Tensor,
    new_key: torch.Tensor,
    new_value: torch.Tensor,
    slots: Slots,
    next_slot: torch.Tensor,
    row_offsets: torch.Tensor,
    longest: int,
    position: int | torch.Tensor,
    *,
    spec: AttentionSpec,
    eviction: Eviction,
    new_score: torch.Tensor | None = None,
    row_start: torch.Tensor | None = None,
    prompt_end: int = 0,
    arrivals: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs one decode step in place: in one launch given ``arrivals`` and rows within a chunk, else in two or three.

    Args:
        query: ``[rows, group, head_dim]``; float32, float16 or bfloat16, as are keys and values.
        new_key: ``[rows, head_dim]``.
        new_value: ``[rows, value_dim]``.
        slots: the store.
        next_slot: int64 ``[rows]``.
        row_offsets: int64 ``[rows + 1]``.
        longest: slots of the longest row.
        position: of the new token; an int64 scalar on the device is read there.
        spec: scaling, softcap, sinks, sliding window.
        eviction: how the next victim is chosen.
        new_score: float32 ``[rows]``, or None.
        row_start: int64 ``[rows]``, or None.
        prompt_end: tokens at positions below are the prompt.
        arrivals: int32 ``[rows]`` zeros, or None; zeros again afterwards.

    Returns:
        ``(output [rows, group, value_dim], probability [slots])``.

    Raises:
        ValueError: a dtype, a size or a layout that the kernels do not take.
    """
    _check(query, new_key, new_value, slots, next_slot)
    query, new_key, new_value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, new_key, new_value))
    rows, group, head_dim = query.shape
    value_dim = new_value.shape[-1]
    arch = architecture(query.device)
    cut = decode_tile(arch, query.dtype, head_dim, value_dim, group)
    splits = min(MOST_SPLITS, triton.cdiv(longest, LEAST_SPLIT))
    one_launch = arrivals is not None and longest <= CHUNK
    step = {
        **_step_arguments(slots, next_slot, row_offsets, position, spec, eviction, prompt_end, group),
        **_scratch(query, value_dim, slots.positions.shape[0], splits),
        **row_constants(value_dim, group),
    }
    attend = {
        **_attend_arguments(query, new_key, new_value, new_score, slots, spec),
        **attend_constants(cut, head_dim, query.dtype),
    }
    finish = {
        "output_ptr": query.new_empty(rows, group, value_dim),
        "probability_ptr": query.new_empty(slots.positions.shape[0], dtype=torch.float32),
        "row_start_ptr": row_start if eviction.sink_tokens else None,
        "sinks_ptr": spec.sinks,
        **finish_constants(value_dim, group, eviction.order, cut.warps),
    }
    stages = attend_stages(cut, arch, query.dtype, one_launch)
    last = {**finish, "arrivals_ptr": arrivals} if one_launch else WITHOUT_FINISH
    with torch.cuda.device_of(query):
        grid = (rows, splits, triton.cdiv(group, cut.heads))
        kernel._attend_slots_kernel[grid](
            **step, **attend, **last, num_warps=cut.warps, num_stages=stages, **COMPILE_OPTIONS
        )
        if not one_launch:
            _finish(step, finish, rows, triton.cdiv(longest, CHUNK), cut.warps)
    return finish["output_ptr"], finish["probability_ptr"]


def _step_arguments(
    slots: Slots,
    next_slot: torch.Tensor,
    row_offsets: torch.Tensor,
    position: int | torch.Tensor,
    spec: AttentionSpec,
    eviction: Eviction,
    prompt_end: int,
    group: int,
) -> dict[str, Any]:
    on_device = isinstance(position, torch.Tensor)
    return {
        "positions_ptr": slots.positions,
        "scores_ptr": slots.scores,
        "next_slot_ptr": next_slot,
        "row_offsets_ptr": row_offsets,
        "position_ptr": position if on_device else None,
        "position": 0 if on_device else position,
        "slot_count": slots.positions.shape[0],
        "kv_heads": 1 if spec.sinks is None else spec.sinks.numel() // group,
        "sliding_window": _UNBOUNDED if spec.sliding_window is None else spec.sliding_window,
        "window_size": eviction.window_size,
        "sink_tokens": eviction.sink_tokens,
        "prompt_end": prompt_end if eviction.keep_prompt else 0,
        "decay": eviction.decay,
    }


def _scratch(query: torch.Tensor, value_dim: int, slot_count: int, splits: int) -> dict[str, Any]:
    """What the splits leave for the finish; only what the finish reads is ever written."""
    rows, group, _ = query.shape
    return {
        "logits_ptr": query.new_empty(group, slot_count, dtype=torch.float32),
        "partial_softmax_ptr": query.new_empty(rows, splits, group, 2, dtype=torch.float32),
        "partial_output_ptr": query.new_empty(rows, splits, group, value_dim, dtype=torch.float32),
    }


def _attend_arguments(
    query: torch.Tensor,
    new_key: torch.Tensor,
    new_value: torch.Tensor,
    new_score: torch.Tensor | None,
    slots: Slots,
    spec: AttentionSpec,
) -> dict[str, Any]:
    return {
        "query_ptr": query,
        "new_key_ptr": new_key,
        "new_value_ptr": new_value,
        "new_score_ptr": new_score,
        "keys_ptr": slots.keys,
        "values_ptr": slots.values,
        "scaling": spec.scaling,
        "softcap": spec.softcap,
        "stride_qr": query.stride(0),
        "stride_qg": query.stride(1),
        "stride_nk": new_key.stride(0),
        "stride_nv": new_value.stride(0),
        "stride_k": slots.keys.stride(0),
        "stride_v": slots.values.stride(0),
    }


def _finish(step: dict[str, Any], finish: dict[str, Any], rows: int, chunks: int, warps: int) -> None:
    """The second launch, and the third one where rows have several chunks."""
    least = None if chunks == 1 else step["next_slot_ptr"].new_empty(rows, chunks)
    kernel._finish_kernel[(rows, 1 + chunks)](
        **step, **finish, split_count=step["partial_softmax_ptr"].shape[1], least_ptr=least, CHUNK=CHUNK,
        num_warps=warps, **COMPILE_OPTIONS,
    )  # fmt: skip
    if least is not None:
        kernel._pick_victims_kernel[(rows,)](
            least, step["positions_ptr"], step["next_slot_ptr"], step["row_offsets_ptr"], chunks, CHUNK,
            num_warps=PICK_WARPS, **COMPILE_OPTIONS,
        )  # fmt: skip


def _check(
    query: torch.Tensor, new_key: torch.Tensor, new_value: torch.Tensor, slots: Slots, next_slot: torch.Tensor
) -> None:
    dtypes = {x.dtype for x in (query, new_key, new_value, slots.keys, slots.values)}
    if len(dtypes) > 1 or query.dtype not in _DTYPES:
        rule = "query, new_key, new_value, keys and values must all be float32, float16 or bfloat16, and the same;"
        found = ", ".join(sorted(str(dtype) for dtype in dtypes))
        raise ValueError(f"{rule} got {found}. Use backend='torch' for other dtypes.")
    head_dim, value_dim = query.shape[-1], new_value.shape[-1]
    if max(head_dim, value_dim) > MAX_HEAD_DIM:
        limit = f"head_dim and value_dim must be at most {MAX_HEAD_DIM}; got {head_dim} and {value_dim}."
        raise ValueError(f"{limit} Use backend='torch' for larger heads.")
    for name, array in (*slots._asdict().items(), ("next_slot", next_slot)):
        if array.stride(-1) != 1:  # written in place: a copy would not do
            raise ValueError(f"{name} must be contiguous in its last axis; got strides {array.stride()}")
