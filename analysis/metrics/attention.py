"""How a query spreads its attention over the keys: entropy, variance, density and the like.

All take probabilities ``[..., queries, keys]`` (0 on keys that a query does not see) and return ``[..., queries]``.
What an argument ``seen`` (bool, broadcastable to the attention) leaves out counts as no key; without it, every query
sees every key. ``n`` is the number of keys seen, ``p`` the probabilities.

The same over the reduced tensors of a sample: :mod:`kvcompress.analysis.metrics.of_sample.attention`.
"""

from __future__ import annotations

from math import isfinite

import torch

from kvcompress.analysis.metrics.inputs import checked_attention, keys_seen


def mean(attention: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
    """Mean probability of a key: ``(Σ p) / n``.

    Range: (0, 1]; ``1 / n`` unless a learned sink took some of the mass.
    """
    values = checked_attention(attention)
    return values.sum(-1) / keys_seen(values, seen)


def entropy(attention: torch.Tensor) -> torch.Tensor:
    """Shannon entropy ``-Σ p ln p``, with ``0 ln 0 = 0``.

    Unit: nats. Range: 0 (all mass on one key) to ``ln n`` (even).

    Source: C. E. Shannon, "A mathematical theory of communication", Bell System Technical Journal 27 (1948).
    """
    values = checked_attention(attention)
    return torch.xlogy(values, values).sum(-1).clamp(max=0).abs()  # abs: 0, never -0, whose inverse is -inf


def entropy_normalised(attention: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
    """Entropy as a share of the largest possible: ``entropy / ln n``; 0 for a single key.

    Range: [0, 1]; comparable between queries that see different numbers of keys.
    """
    largest = keys_seen(checked_attention(attention), seen).log()
    share = entropy(attention) / torch.where(largest > 0, largest, torch.ones_like(largest))
    return torch.where(largest > 0, share.clamp(max=1), torch.zeros_like(share))


def focus(attention: torch.Tensor) -> torch.Tensor:
    """Inverse of the entropy, ``1 / entropy``: large where attention is on few keys.

    Unit: 1 / nats. Range: ``1 / ln n`` to infinity (all mass on one key).
    """
    return 1 / entropy(attention)


def maximum(attention: torch.Tensor) -> torch.Tensor:
    """Largest probability of a query. Range: ``[1 / n, 1]`` where the row sums to 1."""
    return checked_attention(attention).amax(-1)


def variance(attention: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
    """Population variance of the probabilities over the keys seen: ``Σ (p - mean)² / n``.

    Range: 0 (even) to ``(n - 1) / n²`` (all mass on one key).
    """
    return deviations(attention, seen).sum(-1) / keys_seen(checked_attention(attention), seen)


def deviations(attention: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
    """Squared deviation of each probability from its query's mean, 0 on keys not seen: ``[..., queries, keys]``."""
    values = checked_attention(attention)
    squares = (values - mean(attention, seen).unsqueeze(-1)).square()
    return squares if seen is None else squares * seen


def density(attention: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
    """Share of the keys seen that get more than an even share: ``#{p > 1 / n} / n``.

    Range: 0 (even) to below 1; small where few keys hold the mass.
    """
    values = checked_attention(attention)
    count = keys_seen(values, seen)
    return (values > 1 / count.unsqueeze(-1)).sum(-1) / count


def positions_for(attention: torch.Tensor, percent: float) -> torch.Tensor:
    """Fewest keys that together hold ``percent`` of the mass on keys.

    Unit: keys, int64. Range: 1 to ``n``; grows with ``percent``.

    Args:
        attention: probabilities ``[..., queries, keys]``.
        percent: in (0, 100].

    Raises:
        ValueError: ``percent`` out of range.
    """
    if not (isfinite(percent) and 0 < percent <= 100):
        raise ValueError(f"percent must be in (0, 100]; got {percent!r}")
    largest_first = checked_attention(attention).double().sort(-1, descending=True).values
    held = largest_first.cumsum(-1)
    # A share that is reached exactly must not miss it by a rounding.
    wanted = held[..., -1:] * (percent / 100 * (1 - 1e-9))
    return ((held < wanted) & (largest_first > 0)).sum(-1).add(1).clamp(max=attention.shape[-1])
