"""Chooses the implementation of an operation: the torch reference or the Triton kernel.

Every operation lives in a folder of its own: ``reference.py`` (pure torch, the definition), ``kernel.py`` (Triton),
``launch.py`` (grid and scratch) and ``op.py`` (a ``torch.library`` operator with the reference's signature around it).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch

Backend = Literal["auto", "triton", "torch"]

BACKENDS: tuple[str, ...] = ("auto", "triton", "torch")
BACKEND_VARIABLE = "KVCOMPRESS_BACKEND"  # what "auto" means instead
MAX_HEAD_DIM = 512
_WIDE_HEAD = 256  # beyond it fewer queries fit into a tile
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_logger = logging.getLogger("kvcompress")

# (operation, backend) -> "module:function"; imported on first use, so that Triton is never needed to import
# the package.
IMPLEMENTATIONS: dict[tuple[str, str], str] = {
    ("window_scores", "torch"): "kvcompress.kernels.window_scores.reference:window_scores_reference",
    ("window_scores", "triton"): "kvcompress.kernels.window_scores.op:window_scores",
    ("select_top_k", "torch"): "kvcompress.kernels.select_top_k.reference:select_top_k_reference",
    ("select_top_k", "triton"): "kvcompress.kernels.select_top_k.op:select_top_k",
    ("compact", "torch"): "kvcompress.kernels.compact.reference:compact_reference",
    ("compact", "triton"): "kvcompress.kernels.compact.op:compact",
    ("decode_attend", "torch"): "kvcompress.kernels.decode_attend.reference:decode_attend_reference",
    ("decode_attend", "triton"): "kvcompress.kernels.decode_attend.op:decode_attend",
}


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter, on the CPU (``TRITON_INTERPRET=1`` before Triton's import)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def most_window(head_dim: int) -> int:
    """How many window queries the kernels hold: all are in one tile, since the variance needs them together."""
    return 128 if head_dim <= _WIDE_HEAD else 32


def why_not_triton(
    device: torch.device | str,
    *,
    dtype: torch.dtype = torch.float32,
    head_dim: int = 64,
    window: int = 1,
) -> str | None:
    """Why the Triton kernels cannot serve a model; None where they can.

    Args:
        device: device of the model's tensors.
        dtype: their dtype.
        head_dim: largest size of a head.
        window: queries of the observation window.
    """
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if torch.device(device).type != "cuda" and not interpreting():
        return (
            f"Triton kernels need a GPU, and the model is on {torch.device(device).type!r} (TRITON_INTERPRET=1, set "
            "before Python starts, runs them slowly on the CPU, for tests)"
        )
    if dtype not in _DTYPES:
        return f"the kernels know float32, float16 and bfloat16, and the model is {str(dtype).removeprefix('torch.')}"
    if head_dim > MAX_HEAD_DIM:
        return f"the kernels know heads of at most {MAX_HEAD_DIM}, and the model's have {head_dim}"
    most = most_window(head_dim)
    if window > most:
        return f"the kernels hold at most {most} window queries for heads of {head_dim}, and window_size is {window}"
    return None


def resolve_backend(
    requested: str,
    device: torch.device | str,
    *,
    dtype: torch.dtype = torch.float32,
    head_dim: int = 64,
    window: int = 1,
) -> Literal["triton", "torch"]:
    """Turns the user's choice into the backend that will run.

    Args:
        requested: ``"auto"`` (Triton on a GPU where the kernels can serve the model, else torch, which one line in
            the log tells on a GPU), ``"triton"`` or ``"torch"``. The environment variable ``KVCOMPRESS_BACKEND`` says
            what ``"auto"`` means instead.
        device: device of the model's tensors.
        dtype: their dtype.
        head_dim: largest size of a head.
        window: queries of the observation window.

    Returns:
        ``"torch"`` or ``"triton"``.

    Raises:
        ValueError: unknown name, or ``"triton"`` where the kernels cannot serve.
    """
    if requested not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {requested!r}")
    if requested == "auto":
        requested = os.environ.get(BACKEND_VARIABLE, "auto")
        if requested not in BACKENDS:
            raise ValueError(f"{BACKEND_VARIABLE} must be one of {', '.join(BACKENDS)}; got {requested!r}")
    if requested == "torch" or (requested == "auto" and torch.device(device).type != "cuda"):
        return "torch"
    reason = why_not_triton(device, dtype=dtype, head_dim=head_dim, window=window)
    if reason is None:
        return "triton"
    if requested == "auto":
        tell_once(reason)
        return "torch"
    raise ValueError(f"backend='triton' cannot be used: {reason}. Use backend='torch' (or 'auto').")


@cache
def tell_once(reason: str) -> None:
    """Says, once in a process, why a GPU's model runs without the Triton kernels."""
    _logger.warning("backend='auto' runs torch on this GPU, and not the Triton kernels: %s", reason)


@cache
def operation(name: str, backend: str) -> Callable[..., Any]:
    """Returns the function that implements an operation.

    Args:
        name: operation, a folder of ``kernels/``.
        backend: ``"torch"`` or ``"triton"``, as :func:`resolve_backend` gave it.

    Raises:
        ValueError: no such implementation.
    """
    target = IMPLEMENTATIONS.get((name, backend))
    if target is None:
        known = ", ".join(sorted(f"{op}/{be}" for op, be in IMPLEMENTATIONS))
        raise ValueError(f"no implementation of operation {name!r} for backend {backend!r}; known: {known}")
    module, function = target.split(":")
    implementation: Callable[..., Any] = getattr(import_module(module), function)
    return implementation
