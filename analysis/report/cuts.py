"""The lowest scores that were kept: what an evicted token's score is to be compared with."""

from __future__ import annotations

import numpy as np

from kvcompress.analysis.report.encoding import Array

OWN_PREFILL, CASCADE, DECODE = 1, 2, 3  # values of compression.evicted_stage


def lowest_kept(
    score: Array, evicted_event: Array, evicted_stage: Array, *, event: int, tokens: int, sink_tokens: int
) -> Array:
    """Returns the lowest score that each head kept in the last prefill.

    Every prefill scores what is held anew, and a capture has each token's latest score. So only the last prefill can be
    looked at: what earlier ones kept has other scores since.

    Args:
        score: float ``[layers, kv_heads, all tokens]``, NaN where a token was not scored.
        evicted_event: int64, same shape; -1 where the token is held in the end.
        evicted_stage: int64, same shape.
        event: number of the last prefill event.
        tokens: tokens seen after it.
        sink_tokens: first tokens, which the policy keeps whatever their score.

    Returns:
        ``[layers, kv_heads, 2]`` float64: the lowest score kept when the layer's own prefill had evicted, and when the
        cascade had; NaN where the head evicted nothing in this event, or kept no scored token.
    """
    score = score[..., sink_tokens:tokens]
    evicted_event = evicted_event[..., sink_tokens:tokens]
    evicted_stage = evicted_stage[..., sink_tokens:tokens]
    present = (evicted_event < 0) | (evicted_event >= event)
    now = evicted_event == event
    left_first = now & (evicted_stage == OWN_PREFILL)
    left = left_first | (now & (evicted_stage == CASCADE))
    scored = np.isfinite(score)
    lowest = [_lowest(score, present & scored & ~gone) for gone in (left_first, left)]
    cuts: Array = np.stack(lowest, axis=-1)
    cuts[~left.any(-1)] = np.nan
    return cuts


def _lowest(score: Array, which: Array) -> Array:
    least = np.where(which, score, np.inf).min(-1, initial=np.inf).astype(np.float64)
    least[np.isinf(least)] = np.nan
    lowest: Array = least
    return lowest


def count_evictions(evicted_event: Array, evicted_stage: Array, events: int) -> Array:
    """Counts what each layer evicted, by event and stage.

    Args:
        evicted_event: int64 ``[layers, kv_heads, tokens]``.
        evicted_stage: int64, same shape.
        events: how many there are.

    Returns:
        int64 ``[events, layers, 3]``: evictions, over all heads, in the layer's own prefill, by the cascade, while
        decoding.
    """
    layers = evicted_event.shape[0]
    counts = np.zeros((events, layers, 3), dtype=np.int64)
    for layer in range(layers):
        gone = evicted_event[layer] >= 0
        place = evicted_event[layer][gone] * 3 + evicted_stage[layer][gone] - 1
        counts[:, layer] = np.bincount(place, minlength=events * 3)[: events * 3].reshape(events, 3)
    return counts
