"""Launches the kernels of select_top_k: form, grid and scratch follow from shapes alone."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import triton

from kvcompress.kernels.configuration import COMPILE_OPTIONS
from kvcompress.kernels.select_top_k import kernel
from kvcompress.kernels.select_top_k.reference import check_k

# One program per row takes about 3 ns a score (Triton's histogram is some 15 instructions a score and pass): rows up to
# ROW_PROGRAM_SHORT are done before the launches of the other form; longer ones only where rows alone fill a device.
# Estimates from compiled code, not measured.
ROW_PROGRAM_SHORT: Final = 8192
ROW_PROGRAM_MOST: Final = 65536
ROW_PROGRAM_ROWS: Final = 128
# Ranks by counting take k² comparisons a row; beyond it torch's sort of 64-bit keys is faster.
RANK_MOST: Final = 16384
WARPS: Final = {"select_row": 8, "histogram": 8, "count": 8, "scatter": 8, "rank": 8}
_BLOCK: Final = 2048
_BLOCK_COUNTS: Final = 512
# Few and wide: each step over the others waits for its load, and many programs are at work at once.
_BLOCK_RANK: Final = 16
_BLOCK_OTHER: Final = 256


class _Rows(NamedTuple):
    """The rows as the kernels take them.

    Attributes:
        scores: float32, rows of contiguous scores.
        offsets: int64 ``[rows + 1]`` of ragged rows, or None.
        row_k: int64 ``[rows]``, or None.
        rows: how many rows.
        length: scores of each row; of ragged rows all scores together, the most that one row can have.
        k: places of each row's result.
    """

    scores: torch.Tensor
    offsets: torch.Tensor | None
    row_k: torch.Tensor | None
    rows: int
    length: int
    k: int


def block_constants(kernel_name: str) -> dict[str, int]:
    """Compile-time arguments of a kernel, besides ``DIGIT`` of the histogram's.

    Args:
        kernel_name: a key of :data:`WARPS`.
    """
    if kernel_name == "rank":
        return {"BLOCK": _BLOCK_RANK, "BLOCK_OTHER": _BLOCK_OTHER}
    if kernel_name == "scatter":
        return {"BLOCK": _BLOCK, "BLOCK_COUNTS": _BLOCK_COUNTS}
    return {"BLOCK": _BLOCK}


def launch_select_top_k(
    scores: torch.Tensor,
    k: int,
    row_k: torch.Tensor | None = None,
    row_offsets: torch.Tensor | None = None,
) -> torch.Tensor:
    """Runs the kernels: arguments and result of :func:`select_top_k_reference`.

    Scores of another dtype are ranked as the float32 that they round to.

    Raises:
        ValueError: ``k`` outside ``[0, count]``, or ``row_k`` not one number per row.
    """
    if row_offsets is None:
        check_k(k, scores.shape[-1])
        leading = scores.shape[:-1]
        rows = leading.numel()
        count = scores.shape[-1]
    else:
        k = max(k, 0)
        rows, count = row_offsets.numel() - 1, scores.numel()
        leading = torch.Size([rows])
    if row_k is not None and row_k.numel() != rows:
        raise ValueError(f"row_k must hold one number per row, {rows}; got {row_k.numel()}: pass row_k[row]")
    chosen = torch.empty(rows, k, dtype=torch.int64, device=scores.device)
    if rows and k:
        flat = scores.float().reshape(rows, count) if row_offsets is None else scores.float().reshape(1, count)
        given = _Rows(_contiguous_rows(flat), _contiguous(row_offsets), _contiguous(row_k), rows, count, k)
        with torch.cuda.device_of(scores):
            _select(given, chosen)
    return chosen.view(*leading, k)


def _contiguous_rows(scores: torch.Tensor) -> torch.Tensor:
    return scores if scores.stride(-1) == 1 else scores.contiguous()


def _contiguous(numbers: torch.Tensor | None) -> torch.Tensor | None:
    return None if numbers is None else numbers.to(torch.int64).reshape(-1).contiguous()


def _select(given: _Rows, chosen: torch.Tensor) -> None:
    """Fills ``chosen`` (int64 ``[rows, k]``): the set by radix select, then its order."""
    shape, device = (given.rows, given.k), given.scores.device
    if given.k <= RANK_MOST:
        index = torch.empty(shape, dtype=torch.int32, device=device)
        key = torch.empty_like(index)
        _find(given, index, key)
        _rank(given, index, key, chosen)
    else:
        # What the kernels leave unwritten must sort behind everything, as index -1.
        index = torch.full(shape, -1, dtype=torch.int32, device=device)
        key = torch.full(shape, -(2**31), dtype=torch.int32, device=device)
        _find(given, index, key)
        _sort(index, key, chosen)


def _find(given: _Rows, index: torch.Tensor, key: torch.Tensor) -> None:
    """Index and key of each row's chosen scores, in index order (both int32 ``[rows, k]``)."""
    length = (
        given.length if given.offsets is None else given.length // given.rows
    )  # the mean: lengths are on the device
    if length > (ROW_PROGRAM_SHORT if given.rows < ROW_PROGRAM_ROWS else ROW_PROGRAM_MOST):
        _find_with_many_programs(given, index, key)
        return
    kernel._select_row_kernel[(given.rows,)](
        *given[:3],
        index,
        key,
        given.length,
        given.k,
        given.scores.stride(0),
        **block_constants("select_row"),
        num_warps=WARPS["select_row"],
        **COMPILE_OPTIONS,
    )


def _find_with_many_programs(given: _Rows, index: torch.Tensor, key: torch.Tensor) -> None:
    """As :func:`_find`, every row cut into blocks: one launch per digit, one to count, one to write."""
    grid = (given.rows, triton.cdiv(given.length, _BLOCK))
    device = given.scores.device
    histogram = torch.zeros(given.rows, 4, 256, dtype=torch.int32, device=device)
    above = torch.empty(grid, dtype=torch.int32, device=device)
    equal = torch.empty_like(above)
    sizes = (given.length, given.k, given.scores.stride(0))
    for digit in range(4):
        kernel._histogram_kernel[grid](
            *given[:3],
            histogram,
            *sizes,
            DIGIT=digit,
            **block_constants("histogram"),
            num_warps=WARPS["histogram"],
            **COMPILE_OPTIONS,
        )
    kernel._count_kernel[grid](
        *given[:3],
        histogram,
        above,
        equal,
        *sizes,
        **block_constants("count"),
        num_warps=WARPS["count"],
        **COMPILE_OPTIONS,
    )
    kernel._scatter_kernel[grid](
        *given[:3],
        histogram,
        above,
        equal,
        index,
        key,
        *sizes,
        **block_constants("scatter"),
        num_warps=WARPS["scatter"],
        **COMPILE_OPTIONS,
    )


def _rank(given: _Rows, index: torch.Tensor, key: torch.Tensor, chosen: torch.Tensor) -> None:
    """Orders the chosen best first by counting who goes before each."""
    kernel._rank_kernel[(given.rows, triton.cdiv(given.k, _BLOCK_RANK))](
        index,
        key,
        given.offsets,
        given.row_k,
        chosen,
        given.length,
        given.k,
        **block_constants("rank"),
        num_warps=WARPS["rank"],
        **COMPILE_OPTIONS,
    )


def _sort(index: torch.Tensor, key: torch.Tensor, chosen: torch.Tensor) -> None:
    """Orders the chosen best first by sorting unique int64 keys: the score's above, the place from the end below."""
    places = torch.arange(index.shape[1], device=index.device)
    order = ((key.to(torch.int64) << 32) + (2**32 - 1 - places)).argsort(dim=-1, descending=True)
    torch.gather(index.to(torch.int64), 1, order, out=chosen)
