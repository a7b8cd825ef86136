"""Checks that the tensors of a sample belong together."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from kvcompress.analysis.summary.schema import (
    COMPRESSION_TENSORS,
    OPTIONAL_PREFIXES,
    RAW_ATTENTION,
    REQUIRED_TENSORS,
    Shape,
    Summary,
    TensorInfo,
)

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}


def faults(summary: Summary) -> list[str]:
    """What is wrong with the tensors that a summary lists: missing ones, and shapes or dtypes that cannot be."""
    expected: dict[str, tuple[torch.dtype, Shape]] = dict(REQUIRED_TENSORS)
    if summary.policy is not None:
        expected |= COMPRESSION_TENSORS
    missing = sorted(expected.keys() - summary.tensors.keys())
    if missing:
        return [f"{', '.join(missing)} missing"]
    sizes = _sizes(summary)
    found = []
    for name, info in summary.tensors.items():
        if name in expected:
            found += _compare(name, info, *expected[name], sizes)
        elif name.startswith(RAW_ATTENTION + "."):
            found += _raw_attention_faults(name, info, summary)
        elif not name.startswith(OPTIONAL_PREFIXES):
            found.append(f"{name} is no tensor of this schema")
    return found


def _raw_attention_faults(name: str, info: TensorInfo, summary: Summary) -> list[str]:
    heads = len(summary.raw_heads or ())
    if len(info.shape) == 3 and info.shape[0] == heads:
        return []
    return [f"{name} must be [{heads} (raw_heads), queries, keys] and is {list(info.shape)}"]


def _sizes(summary: Summary) -> dict[str, int]:
    """What each named dimension must be."""
    tensors, model = summary.tensors, summary.model
    mass_events = _first(tensors["token.mass_event"])
    return {
        "E": _first(tensors["event.kind"]),
        "L": model.layers,
        "H": model.query_heads,
        "K": model.kv_heads,
        "T": _first(tensors["token.ids"]),
        "D_key": model.head_dim,
        "D_value": model.value_dim,
        "M": _first(tensors["heatmap.event"]),
        "N": mass_events,
        "N+1": mass_events + 1,
        "A": _first(tensors["token.mass"]),
    }


def _first(info: TensorInfo) -> int:
    return info.shape[0] if info.shape else -1


def _compare(name: str, info: TensorInfo, dtype: torch.dtype, shape: Shape, sizes: Mapping[str, int]) -> list[str]:
    wanted = tuple(sizes[size] if isinstance(size, str) else size for size in shape)
    if info.shape == wanted and info.dtype == DTYPE_NAMES[dtype]:
        return []
    return [f"{name} must be {DTYPE_NAMES[dtype]} {list(wanted)} and is {info.dtype} {list(info.shape)}"]
