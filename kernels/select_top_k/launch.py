"""Launches the kernels of select_top_k: form, grid and scratch follow from shapes alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import torch
import triton

from kvcompress.kernels.configuration import COMPILE_OPTIONS
from kvcompress.kernels.select_top_k import kernel
from kvcompress.kernels.select_top_k.reference import check_k

# Rows up to ROW_PROGRAM_MOST are one program each: it goes through its row four times, about 5 us per 1000 scores on an
# H200, where the other form took 32 us for 8 rows of 2048, and 42 for 8 of 131072.
ROW_PROGRAM_MOST: Final = 4096
# How many more candidates than are wanted get a rank; a bin of sixteen bits of the key spans 0.8 % of a score.
EXTRA: Final = 1024
# Ranks by counting take k² comparisons a row; beyond it torch's sort of 64-bit keys is faster.
RANK_MOST: Final = 8192
WARPS: Final = {"select_row": 8, "nibble": 8, "refine": 8, "gather": 8, "rank": 8}
_BLOCK: Final = 2048
_BLOCK_NIBBLE: Final = 1024
_STEPS: Final = 4
# Few and wide: each step over the others waits for its load, and many programs are at work at once.
_BLOCK_RANK: Final = 16
_BLOCK_OTHER: Final = 256
NIBBLES: Final[int] = kernel.NIBBLES.value
_LEAST: Final = -(2**63)  # behind every candidate


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


class _Candidates(NamedTuple):
    """Scores among which the chosen are.

    Attributes:
        candidates: int64 ``[rows, capacity]``: key above, place (counted down) below, see ``kernel._candidate``.
        found: int32 ``[rows]``, how many each row has.
    """

    candidates: torch.Tensor
    found: torch.Tensor


def block_constants(kernel_name: str) -> dict[str, int]:
    """Compile-time arguments of a kernel, besides ``DIGIT`` of the nibble's.

    Args:
        kernel_name: a key of :data:`WARPS`.
    """
    if kernel_name == "rank":
        return {"BLOCK": _BLOCK_RANK, "BLOCK_OTHER": _BLOCK_OTHER}
    if kernel_name == "nibble":
        return {"BLOCK": _BLOCK_NIBBLE, "STEPS": _STEPS}
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
    """Fills ``chosen`` (int64 ``[rows, k]``): candidates by radix select, then their order."""
    length = given.length
    if given.offsets is not None:
        length //= given.rows  # the mean: lengths are on the device
    find = _find_by_row if length <= ROW_PROGRAM_MOST else _find_with_many_programs
    if given.k <= RANK_MOST:
        _rank(given, find(given, torch.empty), chosen)
    else:
        _sort(given, find(given, partial(torch.full, fill_value=_LEAST)), chosen)


def _find_by_row(given: _Rows, make: Callable[..., torch.Tensor]) -> _Candidates:
    """Exactly the chosen of each row, by one program."""
    device = given.scores.device
    candidates = make((given.rows, given.k), dtype=torch.int64, device=device)
    found = torch.empty(given.rows, dtype=torch.int32, device=device)
    kernel._select_row_kernel[(given.rows,)](
        *given[:3],
        candidates,
        found,
        given.length,
        given.k,
        given.k,
        given.scores.stride(0),
        **_options("select_row"),
    )
    return _Candidates(candidates, found)


def _find_with_many_programs(given: _Rows, make: Callable[..., torch.Tensor]) -> _Candidates:
    """The chosen of each row and up to EXTRA more, every row cut into blocks: one launch per nibble, and two more."""
    device = given.scores.device
    capacity = min(given.k + EXTRA, given.length)
    counters = torch.zeros(given.rows * (16 * NIBBLES + 1), dtype=torch.int32, device=device)
    found, histogram = counters.split([given.rows, given.rows * 16 * NIBBLES])
    least = torch.empty(given.rows, dtype=torch.int64, device=device)
    candidates = make((given.rows, capacity), dtype=torch.int64, device=device)
    rows, sizes = given[:3], (given.length, given.k)
    stride = given.scores.stride(0)
    for digit in range(NIBBLES):
        kernel._nibble_kernel[(given.rows, triton.cdiv(given.length, _BLOCK_NIBBLE * _STEPS))](
            *rows, histogram, *sizes, stride, DIGIT=digit, **_options("nibble")
        )
    kernel._refine_kernel[(given.rows,)](
        *rows, histogram, least, candidates, found, *sizes, capacity, stride, **_options("refine")
    )
    kernel._gather_kernel[(given.rows, triton.cdiv(given.length, _BLOCK))](
        *rows, least, candidates, found, *sizes, capacity, stride, **_options("gather")
    )
    return _Candidates(candidates, found)


def _rank(given: _Rows, among: _Candidates, chosen: torch.Tensor) -> None:
    """Orders the chosen best first by counting who goes before each."""
    capacity = among.candidates.shape[1]
    kernel._rank_kernel[(given.rows, triton.cdiv(max(capacity, given.k), _BLOCK_RANK))](
        *among,
        given.offsets,
        given.row_k,
        chosen,
        given.length,
        given.k,
        capacity,
        **_options("rank"),
    )


def _sort(given: _Rows, among: _Candidates, chosen: torch.Tensor) -> None:
    """Orders the chosen best first by sorting; places that no candidate filled sort behind everything."""
    best = among.candidates.sort(dim=-1, descending=True).values[:, : given.k]
    place = torch.arange(given.k, device=chosen.device)
    chosen.fill_(-1)
    wanted = place[: best.shape[1]] < _wanted(given)[:, None]
    chosen[:, : best.shape[1]] = torch.where(wanted, 0xFFFFFFFF - (best & 0xFFFFFFFF), -1)


def _wanted(given: _Rows) -> torch.Tensor:
    """How many each row wants and has, int64 ``[rows]``."""
    lengths = torch.full((given.rows,), given.length, device=given.scores.device)
    lengths = lengths if given.offsets is None else given.offsets.diff()
    wanted = lengths.clamp(max=given.k)
    return wanted if given.row_k is None else torch.minimum(given.row_k, wanted).clamp(min=0)


def _options(kernel_name: str) -> dict[str, Any]:
    """Compile-time arguments and options of a kernel."""
    return {**block_constants(kernel_name), "num_warps": WARPS[kernel_name], **COMPILE_OPTIONS}
