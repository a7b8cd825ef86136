"""What the ahead-of-time check compiles of select_top_k."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvcompress.kernels.configuration import Configuration
from kvcompress.kernels.select_top_k import kernel, launch

_POINTERS = {
    "score_ptr": "*fp32",
    "offset_ptr": "*i64",
    "row_k_ptr": "*i64",
    "histogram_ptr": "*i32",
    "least_ptr": "*i64",
    "candidate_ptr": "*i64",
    "found_ptr": "*i32",
    "chosen_ptr": "*i64",
}
_NUMBERS = ("count", "k", "capacity", "stride_row")


def configurations(architecture: str) -> Iterator[Configuration]:
    """Every kernel with and without ragged rows and counts per row; nothing depends on the architecture.

    Args:
        architecture: one of ``tiles.ARCHITECTURES``.
    """
    del architecture
    for ragged in (False, True):
        for row_k in (False, True):
            yield _configuration("select_row", kernel._select_row_kernel, ragged, row_k)
            yield _configuration("rank", kernel._rank_kernel, ragged, row_k)
            if ragged is not row_k:
                continue  # of the kernels for long rows, the plainest form and the fullest
            yield _configuration("refine", kernel._refine_kernel, ragged, row_k)
            yield _configuration("gather", kernel._gather_kernel, ragged, row_k)
            for digit in range(launch.NIBBLES):
                yield _configuration("nibble", kernel._nibble_kernel, ragged, row_k, DIGIT=digit)


def _configuration(name: str, function: Any, ragged: bool, row_k: bool, **extra: int) -> Configuration:
    """One kernel; pointers that are not given are compile-time None."""
    absent = {pointer: None for pointer, given in (("offset_ptr", ragged), ("row_k_ptr", row_k)) if not given}
    signature = {
        argument: _POINTERS.get(argument, "i32")
        for argument in function.arg_names
        if argument not in absent and (argument in _POINTERS or argument in _NUMBERS)
    }
    unspecialized = {"k", "capacity", "count"} if name == "rank" else {"k", "capacity"}
    case = "-".join(
        ["ragged" if ragged else "even", *(["row_k"] if row_k else []), *(f"{key}{n}" for key, n in extra.items())]
    )
    return Configuration(
        operation="select_top_k",
        kernel=function,
        case=case,
        signature=signature,
        constants={**absent, **launch.block_constants(name), **extra},
        divisible=tuple(argument for argument in signature if argument not in unspecialized),
        warps=launch.WARPS[name],
    )
