"""Fidelity: how close a compressed cache's predictions are to the full cache's, on any text, without labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from kvcompress.analysis.fidelity.teacher_forcing import Forced, force
from kvcompress.analysis.intervals import bootstrap_interval

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """Next-token predictions beside the full cache's.

    Attributes:
        kl: mean of KL(full || compressed), in nats.
        kl_interval_95: bootstrap over windows (positions of one window depend on each other); None of one window.
        top1: share of positions with the same likeliest token.
        top1_interval_95: the same for it.
        kl_by_position: mean over windows for each step after the prompt.
        top1_by_position: the same for the agreement.
        windows: windows of text.
        kv_bytes: bytes held in the end, per window.
        full_bytes: bytes that the full cache held.
    """

    kl: float
    kl_interval_95: Interval | None
    top1: float
    top1_interval_95: Interval | None
    kl_by_position: tuple[float, ...]
    top1_by_position: tuple[float, ...]
    windows: int
    kv_bytes: int
    full_bytes: int


def fidelity(
    model: PreTrainedModel,
    make_cache: Callable[[], Cache],
    windows: torch.Tensor,
    *,
    context: int,
    chunk: int = 1,
    batch_size: int = 8,
) -> Fidelity:
    """Measures fidelity on windows of text; arguments of :func:`~kvcompress.analysis.fidelity.teacher_forcing.force`.

    Args:
        model: a decoder, in evaluation mode.
        make_cache: makes the compressed cache, empty, for each batch.
        windows: int64 ``[windows, context + steps + 1]``.
        context: tokens of each prompt.
        chunk: tokens forced at a time; 1 decodes as generation does.
        batch_size: windows at a time.
    """
    return fidelity_of(force(model, make_cache, windows, context=context, chunk=chunk, batch_size=batch_size))


def fidelity_of(forced: Forced) -> Fidelity:
    """Sums up what was forced."""
    return Fidelity(
        kl=float(forced.divergence.mean()),
        kl_interval_95=window_interval(forced.divergence),
        top1=float(forced.agreement.mean()),
        top1_interval_95=window_interval(forced.agreement),
        kl_by_position=tuple(forced.divergence.mean(0).tolist()),
        top1_by_position=tuple(forced.agreement.mean(0).tolist()),
        windows=len(forced.divergence),
        kv_bytes=forced.kv_bytes,
        full_bytes=forced.full_bytes,
    )


def window_interval(values: torch.Tensor) -> Interval | None:
    """95 % bootstrap interval of the mean of ``[windows, steps]``, over windows; None of a single one."""
    return bootstrap_interval(values.mean(1).numpy()) if len(values) > 1 else None
