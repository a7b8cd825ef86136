"""Libraries that take part where they are installed: flash-attn and FlashInfer."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from kvcompress.bench.kernels_bench.prepared_case import Layer, Skipped

_SIXTEEN_BITS = (torch.float16, torch.bfloat16)

Attention = tuple[Callable[[], torch.Tensor] | None, list[Skipped]]


def load(provider: str, module: str, device: torch.device) -> tuple[Any, list[Skipped]]:
    """Imports a library.

    Args:
        provider: what it is called in the results.
        module: its module.
        device: where its kernels would run; they know GPUs only.

    Returns:
        The module, or None and why it cannot take part.
    """
    try:
        found = import_module(module)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == module
        return None, [Skipped(provider, "not installed" if missing else f"cannot be imported: {error}")]
    if device.type != "cuda":
        return None, [Skipped(provider, "runs on a GPU only")]
    return found, []


def flashinfer_top_k(scores: torch.Tensor, k: int) -> Attention:
    """FlashInfer's selection; returns indices ``[rows, k]`` when called.

    Args:
        scores: float32 ``[rows, count]``.
        k: how many of each row.
    """
    library, skipped = load("flashinfer", "flashinfer", scores.device)
    if library is None:
        return None, skipped
    if not hasattr(library, "top_k"):
        return None, [Skipped("flashinfer", "this version has no top_k")]

    def run() -> torch.Tensor:
        indices: torch.Tensor = library.top_k(scores, k)[1]
        return indices

    return run, []


def flash_attn_decode(layer: Layer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Attention:
    """flash-attn's attention of one query per sequence over a cache, without writing or evicting.

    Args:
        layer: for its dtype and device.
        query: ``[batch, query_heads, 1, head_dim]``.
        key: ``[batch, kv_heads, slots, head_dim]``.
        value: likewise.
    """
    library, skipped = load("flash_attn", "flash_attn", layer.device)
    if library is None:
        return None, skipped
    if layer.dtype not in _SIXTEEN_BITS:
        return None, [Skipped("flash_attn", "knows float16 and bfloat16 only")]
    q, k, v = (tensor.transpose(1, 2).contiguous() for tensor in (query, key, value))
    return lambda: library.flash_attn_with_kvcache(q, k, v, softmax_scale=layer.spec.scaling), []


def flashinfer_decode(layer: Layer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Attention:
    """FlashInfer's attention of one query over a cache of one sequence; arguments as of :func:`flash_attn_decode`."""
    library, skipped = load("flashinfer", "flashinfer", layer.device)
    if library is None:
        return None, skipped
    if layer.dtype not in _SIXTEEN_BITS:
        return None, [Skipped("flashinfer", "knows float16 and bfloat16 only")]
    if layer.shape.batch != 1:
        return None, [Skipped("flashinfer", "its decode function takes one sequence")]
    q, k, v = query[0, :, 0], key[0], value[0]

    def run() -> torch.Tensor:
        options = {"kv_layout": "HND", "sm_scale": layer.spec.scaling}
        output: torch.Tensor = library.single_decode_with_kv_cache(q, k, v, **options)
        return output.view(1, 1, *output.shape)

    return run, []
