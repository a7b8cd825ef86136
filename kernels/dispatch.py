"""Chooses the implementation of an operation: the torch reference or the Triton kernel.

Every operation lives in a folder of its own with ``reference.py`` (pure torch, the definition). A Triton version adds
``kernel.py`` and ``launch.py`` beside it and one row to :data:`IMPLEMENTATIONS`; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, Literal

import torch

Backend = Literal["auto", "triton", "torch"]

BACKENDS: tuple[str, ...] = ("auto", "triton", "torch")

# (operation, backend) -> "module:function"; imported on first use, so that Triton is never needed to import
# the package.
IMPLEMENTATIONS: dict[tuple[str, str], str] = {
    ("window_scores", "torch"): "kvcompress.kernels.window_scores.reference:window_scores_reference",
    ("select_top_k", "torch"): "kvcompress.kernels.select_top_k.reference:select_top_k_reference",
    ("compact", "torch"): "kvcompress.kernels.compact.reference:compact_reference",
    ("decode_attend", "torch"): "kvcompress.kernels.decode_attend.reference:decode_attend_reference",
}


def resolve_backend(requested: str, device: torch.device | str) -> Literal["triton", "torch"]:
    """Turns the user's choice into the backend that will run.

    Args:
        requested: ``"auto"`` (the fastest that exists for the device), ``"triton"`` or ``"torch"``.
        device: device of the model's tensors.

    Returns:
        ``"torch"`` or ``"triton"``.

    Raises:
        ValueError: unknown name, or ``"triton"`` where some operation has no Triton kernel.
    """
    if requested not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {requested!r}")
    operations = {name for name, _ in IMPLEMENTATIONS}
    missing = sorted(name for name in operations if (name, "triton") not in IMPLEMENTATIONS)
    on_gpu = torch.device(device).type == "cuda"
    if requested == "triton" and missing:
        raise ValueError(
            f"backend='triton' needs a Triton kernel for every operation; missing: {', '.join(missing)}. "
            "Use backend='torch' (or 'auto')."
        )
    if requested == "triton" or (requested == "auto" and on_gpu and not missing):
        return "triton"
    return "torch"


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
