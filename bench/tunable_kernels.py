"""The kernels whose tiles are tuned: a layer to run each on, and a judge of its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from types import MappingProxyType
from typing import Any, Final

import torch

from kvcompress.bench.kernels_bench.decode_case import DecodeStep
from kvcompress.bench.kernels_bench.layer_shapes import LayerShape
from kvcompress.bench.kernels_bench.prefill_cases import our_scores, score_error
from kvcompress.bench.kernels_bench.prepared_case import OUTPUT_TOLERANCE, SCORE_TOLERANCE, Layer, dtype_name
from kvcompress.kernels.tiles import Tile, architecture, tile, tile_key

# Scores first: while the log-sum-exp is tuned, both kernels run.
WINDOW_KERNELS: Final = ("window_scores", "window_lse")
_TOKENS: Final = 32768


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningCase:
    """A layer, a dtype, and the kernels that are tuned on it."""

    shape: LayerShape
    dtype: torch.dtype
    kernels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunable:
    """A kernel on a layer.

    Attributes:
        key: name of its tile.
        label: the layer's sizes.
        dtype: of its tensors.
        group: query heads per kv head.
        window: queries per head.
        run: runs it with the tile in force.
        error: runs it and says how far the result is from the reference.
        tolerance: the largest error that is no mistake.
        rule: the tile in force.
    """

    key: str
    label: str
    dtype: str
    group: int
    window: int
    run: Callable[[], object]
    error: Callable[[], float]
    tolerance: float
    rule: Callable[[], Tile]


def _cases() -> dict[str, TuningCase]:
    """Groups and head sizes of common models: in 16 bits all of them, in float32 one."""
    heads = {4: (32, 8), 7: (28, 4), 1: (32, 32), 8: (64, 8)}
    found = {}
    for head_dim, group in [*product((128, 64), heads), (256, 4)]:
        query_heads, kv_heads = heads[group]
        name = f"D{head_dim}-G{group}"
        shape = LayerShape(model=name, query_heads=query_heads, kv_heads=kv_heads, head_dim=head_dim, tokens=_TOKENS)
        kernels = (*WINDOW_KERNELS, "decode_attend")
        found[f"bf16-{name}"] = TuningCase(shape=shape, dtype=torch.bfloat16, kernels=kernels)
    llama = found["bf16-D128-G4"]
    found["fp32-D128-G4"] = TuningCase(shape=llama.shape, dtype=torch.float32, kernels=llama.kernels)
    return found


CASES: Final[Mapping[str, TuningCase]] = MappingProxyType(_cases())


def tunable(kernel: str, case: TuningCase, device: torch.device) -> Tunable:
    """Makes the layer of a case, and what runs a kernel on it.

    Args:
        kernel: one of ``case.kernels``.
        case: the layer.
        device: where it runs.

    Raises:
        ValueError: no such kernel.
    """
    if kernel not in case.kernels:
        raise ValueError(f"kernel must be one of {', '.join(case.kernels)}; got {kernel!r}")
    shape = case.shape
    group, window = shape.query_heads // shape.kv_heads, 1 if kernel == "decode_attend" else shape.window
    which: dict[str, Any] = {
        "architecture": architecture(device),
        "dtype": case.dtype,
        "head_dim": shape.head_dim,
        "group": group,
        "window": window,
    }
    run, error = _work(kernel, Layer(shape, case.dtype, device, ("triton",)))
    return Tunable(
        key=tile_key(kernel, **which),
        label=shape.label,
        dtype=dtype_name(case.dtype),
        group=group,
        window=window,
        run=run,
        error=error,
        tolerance=OUTPUT_TOLERANCE[case.dtype] if kernel == "decode_attend" else SCORE_TOLERANCE,
        rule=partial(tile, kernel, **which),
    )


def _work(kernel: str, layer: Layer) -> tuple[Callable[[], object], Callable[[], float]]:
    """What runs a kernel, and what runs it and says how far it is off."""
    if kernel == "decode_attend":
        step = DecodeStep(layer, "running")
        decode = partial(step, "triton")
        return decode, partial(step.error, decode)
    scores = partial(our_scores, layer, "triton", None if kernel == "window_lse" else layer.log_sum_exp)
    return scores, partial(score_error, scores, layer.exact)
