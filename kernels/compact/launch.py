"""Launches the kernel of compact: one launch, whatever the plan."""

from __future__ import annotations

from typing import Final

import torch

from kvcompress.kernels.compact import kernel
from kvcompress.kernels.configuration import COMPILE_OPTIONS
from kvcompress.kernels.tiles import power_of_two

WARPS: Final = 8
_BLOCK_MOST: Final = 32
# Numbers of keys (or values) per program, 16 a thread. Twice as many took 254 registers on sm90 where nothing is
# aligned and every number has an address of its own.
_TILE_MOST: Final = 4096
# A move does not interpret its numbers: {bytes of one: integer of that size}.
_BITS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

_Arrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def compact_constants(head_dim: int, value_dim: int) -> dict[str, int]:
    """Compile-time arguments of the kernel.

    Args:
        head_dim: size of a key.
        value_dim: size of a value.
    """
    return {
        "HEAD_DIM": head_dim,
        "HEAD_DIM_PADDED": power_of_two(head_dim),
        "VALUE_DIM": value_dim,
        "VALUE_DIM_PADDED": power_of_two(value_dim),
        "BLOCK_M": max(1, min(_BLOCK_MOST, _TILE_MOST // power_of_two(max(head_dim, value_dim)))),
    }


def launch_compact(
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    scores: torch.Tensor,
    plan: torch.Tensor,
    chosen: torch.Tensor | None,
    total: int,
    longest: int,
) -> _Arrays:
    """Runs the kernel.

    Args:
        keys: ``[batch, kv_heads, tokens, head_dim]`` of any strides, or ``[tokens, head_dim]``.
        values: the same with ``value_dim``.
        positions: int64, the leading shape of ``keys``.
        scores: float32, the leading shape of ``keys``, or fewer tokens.
        plan: int64 ``[6, rows + 1]``: the rows' offsets, then the entries of the :class:`RowPlan`, each with a place
            at its end that is not read.
        chosen: int64 ``[rows, most]``, or None.
        total: slots of all rows.
        longest: slots of the longest row.

    Returns:
        Keys ``[total, head_dim]``, values ``[total, value_dim]``, positions and scores ``[total]``.

    Raises:
        ValueError: keys or values of neither two nor four axes, or of a dtype that no integer has the size of.
    """
    _check(keys, "keys")
    _check(values, "values")
    new = (
        keys.new_empty(total, keys.shape[-1]),
        values.new_empty(total, values.shape[-1]),
        positions.new_empty(total),
        scores.new_empty(total, dtype=scores.dtype if scores.shape[-1] else torch.float32),
    )
    if total:
        chosen = None if chosen is None or chosen.shape[-1] == 0 else _last_axis_contiguous(chosen)
        keys, values = _last_axis_contiguous(keys), _last_axis_contiguous(values)
        with torch.cuda.device_of(keys):
            _launch((keys, values, positions, scores), plan, chosen, new, longest)
    return new


def _launch(arrays: _Arrays, plan: torch.Tensor, chosen: torch.Tensor | None, new: _Arrays, longest: int) -> None:
    """Fills ``new`` from ``arrays``, which the kernel can read."""
    keys, values, positions, scores = arrays
    constants = compact_constants(keys.shape[-1], values.shape[-1])
    grid = (plan.shape[1] - 1, -(-longest // constants["BLOCK_M"]))
    kernel._compact_kernel[grid](
        *(_bits(keys), _bits(values), positions, scores, plan, chosen),
        *(_bits(new[0]), _bits(new[1]), new[2], new[3]),
        plan.stride(0),
        0 if chosen is None else chosen.shape[-1],
        keys.shape[1] if keys.dim() == 4 else 1,
        positions.shape[-1],
        scores.shape[-1],
        *_strides(keys, 1),
        *_strides(values, 1),
        *_strides(positions, 0),
        *_strides(scores, 0),
        0 if chosen is None else chosen.stride(0),
        **constants,
        num_warps=WARPS,
        **COMPILE_OPTIONS,
    )


def _check(array: torch.Tensor, name: str) -> None:
    if array.dim() not in (2, 4):
        raise ValueError(
            f"{name} must be [batch, kv_heads, tokens, size] or [tokens, size]; got {list(array.shape)}: add or merge "
            "the leading axes"
        )
    if array.itemsize not in _BITS:
        raise ValueError(
            f"{name} must have a dtype of 1, 2, 4 or 8 bytes; got {array.dtype}: use backend='torch' for others"
        )


def _last_axis_contiguous(array: torch.Tensor) -> torch.Tensor:
    return array if array.stride(-1) == 1 else array.contiguous()


def _bits(array: torch.Tensor) -> torch.Tensor:
    return array.view(_BITS[array.itemsize])


def _strides(array: torch.Tensor, vector_axes: int) -> tuple[int, ...]:
    """Strides of batch, head and token; a flat array has no batch and no heads."""
    strides = array.stride()[: array.dim() - vector_axes]
    return (0,) * (3 - len(strides)) + strides
