"""What the ahead-of-time check compiles of window_scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch

from kvcompress.kernels.configuration import Configuration
from kvcompress.kernels.tiles import Tile, tile
from kvcompress.kernels.window_scores import kernel, launch

_HEAD_DIMS: Final = (64, 80, 96, 112, 128, 192, 256, 512)
_MAIN_DIMS: Final = (64, 128, 256)
_DTYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_WINDOW: Final = 32
_EMITS: Final = ("score_ptr", "mean_ptr", "variance_ptr", "maximum_ptr", "token_entropy_ptr")
_STRIDES: Final = tuple(f"stride_{axis}" for axis in ("qb", "qh", "qw", "kb", "kh", "kt"))
_OPTIONAL: Final = ("positions_ptr", "sliding_window", "softcap")


def configurations(architecture: str) -> Iterator[Configuration]:
    """Sizes, dtypes and usual groups on the fast path; some with all that is optional; other windows and groups.

    Args:
        architecture: one of ``tiles.ARCHITECTURES``.
    """
    for dtype in _DTYPES:
        for head_dim in _MAIN_DIMS if dtype == "fp16" else _HEAD_DIMS:  # fp16 compiles to the code of bf16
            for group in (1, 4, 8) if dtype != "fp16" and head_dim in _MAIN_DIMS else (4,):
                yield from _both(architecture, dtype, head_dim, group, _WINDOW)
        yield from _both(architecture, dtype, 128, 4, _WINDOW, features=True)
    for dtype in ("bf16", "fp32"):
        yield from _both(architecture, dtype, 128, 7, _WINDOW)
        yield from _both(architecture, dtype, 128, 4, 128)
        for head_dim in (64, 256, 512):
            yield from _both(architecture, dtype, head_dim, 4, _WINDOW, features=True)
    yield from _both(architecture, "bf16", 128, 32, 8)
    yield from _both(architecture, "bf16", 80, 12, 1, features=True)
    yield from (_combine(sinks) for sinks in (False, True))
    yield _totals()
    yield from (_pool(chunks, pool_size) for chunks in (1, 2) for pool_size in (1, 5, 7) if chunks * pool_size > 1)


def _both(
    architecture: str, dtype: str, head_dim: int, group: int, window: int, *, features: bool = False
) -> Iterator[Configuration]:
    """The two kernels with a product; ``features`` gives them every optional argument."""
    case = f"{dtype}-D{head_dim}-G{group}-W{window}" + ("-features" if features else "")
    absent: dict[str, Any] = {} if features else dict.fromkeys(_OPTIONAL)
    sizes: dict[str, Any] = {"dtype": _DTYPES[dtype], "head_dim": head_dim, "group": group, "window": window}
    cut = tile("window_lse", architecture=architecture, **sizes)
    constants = absent | launch.tile_constants(cut, **sizes)
    yield _configuration(kernel._window_lse_kernel, case, _lse_signature(dtype), constants, cut)
    cut = tile(launch.scores_tile(all_seen=not features, softcap=features), architecture=architecture, **sizes)
    masks = launch.mask_constants(window=window, all_seen=not features, valid_queries=features)
    constants = absent | launch.tile_constants(cut, **sizes) | masks
    if not features:
        constants |= dict.fromkeys(("valid_ptr", *_EMITS[1:]))
    signature = _scores_signature(dtype)
    yield _configuration(kernel._window_scores_kernel, case, signature, constants, cut)
    if (head_dim, group, window) == (128, 4, _WINDOW):
        given = constants | {"correction_ptr": None}
        yield _configuration(kernel._window_scores_kernel, f"{case}-given", signature, given, cut)


def _configuration(
    jitted: Any, case: str, signature: dict[str, str], constants: dict[str, Any], chosen: Tile
) -> Configuration:
    present = {name: kind for name, kind in signature.items() if name not in constants}
    return Configuration(
        operation="window_scores",
        kernel=jitted,
        case=case,
        signature=present,
        constants=constants,
        divisible=tuple(name for name, kind in present.items() if kind.startswith("*") or name in _STRIDES),
        warps=chosen.warps,
        stages=chosen.stages,
    )


def _lse_signature(dtype: str) -> dict[str, str]:
    return {
        "query_ptr": f"*{dtype}",
        "key_ptr": f"*{dtype}",
        "positions_ptr": "*i64",
        "partial_ptr": "*fp32",
        **dict.fromkeys((*_STRIDES, "stride_pb", "stride_ph", "stride_pt"), "i32"),
        **dict.fromkeys(("keys", "window", "last_position", "sliding_window", "split_keys"), "i32"),
        **dict.fromkeys(("scale", "softcap"), "fp32"),
    }


def _scores_signature(dtype: str) -> dict[str, str]:
    return {
        "query_ptr": f"*{dtype}",
        "key_ptr": f"*{dtype}",
        "lse_ptr": "*fp32",
        "correction_ptr": "*fp32",
        "positions_ptr": "*i64",
        "valid_ptr": "*u8",
        **dict.fromkeys((*_EMITS, "totals_ptr"), "*fp32"),
        **dict.fromkeys((*_STRIDES, "stride_pb", "stride_ph", "stride_pt", "stride_vb", "stride_vw"), "i32"),
        **dict.fromkeys(("scored", "window", "last_position", "sliding_window", "split_keys"), "i32"),
        **dict.fromkeys(("scale", "softcap", "gamma"), "fp32"),
    }


def _combine(sinks: bool) -> Configuration:
    signature = {"partial_ptr": "*fp32", "sinks_ptr": "*fp32", "lse_ptr": "*fp32"}
    signature |= dict.fromkeys(("rows", "splits", "window", "query_heads"), "i32")
    constants: dict[str, Any] = {} if sinks else {"sinks_ptr": None}
    constants |= {"BLOCK_R": launch.COMBINE_ROWS, "BLOCK_S": launch.COMBINE_SPLITS}
    return _small(kernel._lse_combine_kernel, "sinks" if sinks else "plain", signature, constants)


def _totals() -> Configuration:
    signature = {"partial_ptr": "*fp32", "total_ptr": "*fp32", "programs": "i32"}
    return _small(kernel._totals_kernel, "plain", signature, {"BLOCK": launch.TOTAL_PROGRAMS})


def _pool(chunks: int, pool_size: int) -> Configuration:
    signature = {"chunk_ptr": "*fp32", "score_ptr": "*fp32", "scored": "i32"}
    constants = {"CHUNKS": chunks, "POOL": pool_size, "BLOCK_N": launch.POOL_KEYS}
    return _small(kernel._pool_scores_kernel, f"chunks{chunks}-pool{pool_size}", signature, constants)


def _small(jitted: Any, case: str, signature: dict[str, str], constants: dict[str, Any]) -> Configuration:
    """A kernel without a product, with Triton's default warps and stages."""
    return _configuration(jitted, case, signature, constants, Tile(block_n=0, heads=1, warps=4, stages=3))
