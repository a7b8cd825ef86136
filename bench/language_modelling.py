"""Language modelling: perplexity of a text's second part, its first part compressed, beside the full cache's.

Small models hardly use what lies far back, so that this tells policies apart less than retrieval does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from kvcompress.analysis.fidelity.fidelity import Interval, window_interval
from kvcompress.analysis.fidelity.teacher_forcing import Forced, force


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModelling:
    """Losses of a text under both caches.

    Attributes:
        perplexity: ``exp`` of the mean loss with the compressed cache.
        full_perplexity: the same with the full cache.
        loss_increase: compressed minus full loss, mean in nats per token.
        loss_increase_interval_95: bootstrap over windows, paired; None of one window.
        windows: windows of text.
        kv_bytes: bytes held in the end, per window.
        full_bytes: bytes that the full cache held.
    """

    perplexity: float
    full_perplexity: float
    loss_increase: float
    loss_increase_interval_95: Interval | None
    windows: int
    kv_bytes: int
    full_bytes: int


def language_modelling(
    model: PreTrainedModel,
    make_cache: Callable[[], Cache],
    windows: torch.Tensor,
    *,
    context: int,
    chunk: int = 1,
    batch_size: int = 8,
) -> LanguageModelling:
    """Measures perplexity on windows of text (:func:`~kvcompress.analysis.fidelity.teacher_forcing.text_windows`).

    Args:
        model: a decoder, in evaluation mode.
        make_cache: makes the compressed cache, empty, for each batch.
        windows: int64 ``[windows, context + steps + 1]``.
        context: tokens of each prompt.
        chunk: tokens forced at a time; 1 decodes as generation does.
        batch_size: windows at a time.
    """
    return language_modelling_of(force(model, make_cache, windows, context=context, chunk=chunk, batch_size=batch_size))


def language_modelling_of(forced: Forced) -> LanguageModelling:
    """Sums up what was forced."""
    increase = forced.compressed_loss - forced.full_loss
    return LanguageModelling(
        perplexity=exp(float(forced.compressed_loss.mean())),
        full_perplexity=exp(float(forced.full_loss.mean())),
        loss_increase=float(increase.mean()),
        loss_increase_interval_95=window_interval(increase),
        windows=len(increase),
        kv_bytes=forced.kv_bytes,
        full_bytes=forced.full_bytes,
    )
