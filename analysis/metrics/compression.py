"""What compression removed and what it left: tokens, bytes, budgets, attention.

Pure functions on tensors; :mod:`kvcompress.analysis.metrics.of_sample.compression` applies them to a capture.
"""

from __future__ import annotations

import torch

from kvcompress.analysis.metrics.attention import deviations
from kvcompress.analysis.metrics.inputs import checked_attention

PREFILL, CASCADE, DECODE = 1, 2, 3  # stages of an eviction


def compression_ratio(held: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Fraction of the tokens that was REMOVED: ``1 - held / seen``.

    Range: [0, 1) where no more is held than was seen; NaN where nothing was seen.

    Args:
        held: tokens held, any shape.
        seen: tokens seen, broadcastable to it.
    """
    return 1 - held.double() / seen.double()


def cache_bytes(*, tokens: int, layers: int, kv_heads: int, head_dim: int, value_dim: int, element_bytes: int) -> int:
    """Bytes of keys and values: ``layers · kv_heads · tokens · (head_dim + value_dim) · element_bytes``.

    Raises:
        ValueError: a number below 0.
    """
    sizes = {
        "tokens": tokens,
        "layers": layers,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "value_dim": value_dim,
        "element_bytes": element_bytes,
    }
    for name, size in sizes.items():
        if size < 0:
            raise ValueError(f"{name} must be at least 0; got {size}")
    return layers * kv_heads * tokens * (head_dim + value_dim) * element_bytes


def share_kept(weights: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Share of a total that lies on the keys kept: ``Σ_kept w / Σ w``.

    Range: [0, 1] for weights of at least 0; 1 where all are kept; never falls when more are kept. NaN where the total
    is 0.

    Args:
        weights: ``[..., keys]``, at least 0.
        kept: bool, broadcastable to it.
    """
    return (weights * kept).sum(-1) / weights.sum(-1)


def attention_mass_kept(attention: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Share of each query's attention that goes to keys that are kept: ``Σ_kept p / Σ p``.

    Range: [0, 1]. The eviction error of a query's attention is one minus this.

    Args:
        attention: probabilities ``[..., queries, keys]`` over all keys, as without compression.
        kept: bool, broadcastable to it.

    Returns:
        ``[..., queries]``.

    Source: Feng et al., Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation, arXiv 2407.11550, where the
        loss of a layer's output is bounded by the mass that was evicted.
    """
    return share_kept(checked_attention(attention), kept)


def entropy_kept(attention: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Share of each query's entropy that stands on keys that are kept: ``Σ_kept p ln p / Σ p ln p``.

    Range: [0, 1]; NaN where the entropy is 0. Weighs the many small probabilities more than the mass does. Arguments
    and result as of :func:`attention_mass_kept`.
    """
    values = checked_attention(attention)
    return share_kept(-torch.xlogy(values, values).clamp(max=0), kept)


def variance_kept(attention: torch.Tensor, kept: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
    """Share of each query's variance that stands on keys that are kept: ``Σ_kept (p - m)² / Σ (p - m)²``.

    ``m`` is the mean over all keys seen. Range: [0, 1]; NaN where attention is even. Weighs the few large probabilities
    more than the mass does. Arguments and result as of :func:`attention_mass_kept`; ``seen`` as of
    :func:`kvcompress.analysis.metrics.attention.variance`.
    """
    return share_kept(deviations(attention, seen), kept)


def budget_utilisation(held: torch.Tensor, budget: torch.Tensor, window_size: int) -> torch.Tensor:
    """Tokens held as a share of the budget: ``mean over heads of held / (budget + window_size)``.

    Range: [0, 1] after a prefill; 1 where the budget is used up, more where decoding may add tokens. NaN for layers
    without a budget.

    Args:
        held: int64 ``[..., layers, kv_heads]``.
        budget: int64 ``[layers]``, tokens per head on average, window excluded; -1 for a layer that is not compressed.
        window_size: tokens that are kept on top of it.

    Returns:
        float64 ``[..., layers]``.
    """
    limits = torch.where(budget < 0, torch.nan, budget.double() + window_size)
    return held.double().mean(-1) / limits


def budget_share(budget: torch.Tensor) -> torch.Tensor:
    """Each layer's share of all budgets: ``b_l / Σ b``.

    Range: [0, 1], sum 1; NaN for layers without a budget, and where all budgets are 0.

    Args:
        budget: int64 ``[layers]``; -1 for a layer that is not compressed.
    """
    known = torch.where(budget < 0, torch.nan, budget.double())
    return known / known.nansum()


def evictions_by_event(evicted_event: torch.Tensor, events: int) -> torch.Tensor:
    """Tokens evicted at each event, over all heads of a layer: int64 ``[events, layers]``.

    Args:
        evicted_event: int64 ``[layers, kv_heads, tokens]``; -1 where the token is still held.
        events: number of events.

    Raises:
        ValueError: an event that there is not.
    """
    if evicted_event.numel() and not (int(evicted_event.min()) >= -1 and int(evicted_event.max()) < events):
        raise ValueError(
            f"evicted_event must be -1 or below events={events}; got values from {int(evicted_event.min())} to "
            f"{int(evicted_event.max())}"
        )
    layers = len(evicted_event)
    counts = torch.zeros(layers, events + 1, dtype=torch.int64)
    places = evicted_event.flatten(1) + 1
    counts.scatter_add_(1, places, torch.ones_like(places))
    return counts[:, 1:].T.contiguous()


def eviction_frequency(evicted_stage: torch.Tensor, decode_events: int) -> torch.Tensor:
    """Tokens that a head evicts per decoded token: ``#{stage = decode} / (kv_heads · decode_events)``.

    Range: [0, 1] where each step adds one token and evicts at most one. NaN without decode events.

    Args:
        evicted_stage: int64 ``[layers, kv_heads, tokens]``: 0 not evicted, 1 in prefill, 2 by the cascade, 3 decoding.
        decode_events: number of decoded tokens.

    Returns:
        float64 ``[layers]``.
    """
    evicted = (evicted_stage == DECODE).sum((1, 2)).double()
    return evicted / (evicted_stage.shape[1] * decode_events) if decode_events else torch.full_like(evicted, torch.nan)


def evicted_by_stage(evicted_stage: torch.Tensor) -> torch.Tensor:
    """Tokens evicted in prefill, by the cascade and while decoding, per head: int64 ``[layers, kv_heads, 3]``.

    Args:
        evicted_stage: int64 ``[layers, kv_heads, tokens]``, as of :func:`eviction_frequency`.
    """
    return torch.stack([(evicted_stage == stage).sum(-1) for stage in (PREFILL, CASCADE, DECODE)], dim=-1)
