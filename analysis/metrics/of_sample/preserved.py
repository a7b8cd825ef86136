"""What the tokens kept by a sample hold of the attention that was paid."""

from __future__ import annotations

from typing import NamedTuple

import torch

from kvcompress.analysis.metrics import compression
from kvcompress.analysis.metrics.inputs import causal_mask
from kvcompress.analysis.summary.reader import Sample
from kvcompress.analysis.summary.schema import RAW_ATTENTION


class Preserved(NamedTuple):
    """What is left after an event of the attention paid in it: float ``[L, K]``, in [0, 1].

    Attributes:
        mass: share of the mass.
        entropy: share of the entropy.
        variance: share of the variance.
    """

    mass: torch.Tensor
    entropy: torch.Tensor
    variance: torch.Tensor


def preserved(sample: Sample, event: int) -> Preserved:
    """What the tokens held after an event hold of the attention paid in it.

    From the mass per token (mean over query heads and over the queries at or after the token), taken as a distribution
    over the tokens: this weighs late tokens more than the mean over queries does. :func:`preserved_exactly` does not.

    Args:
        sample: a sample of a compressed run.
        event: one whose mass per token is stored.

    Raises:
        ValueError: it is not stored.
    """
    mass = sample.token_mass(event).double()
    shares = (mass / mass.sum(1, keepdim=True))[:, None, None, :]  # [L, 1, 1, tokens]: a query for every head
    kept = sample.held(event)[:, :, None, : mass.shape[1]]  # [L, K, 1, tokens]
    return Preserved(
        mass=compression.attention_mass_kept(shares, kept).squeeze(-1),
        entropy=compression.entropy_kept(shares, kept).squeeze(-1),
        variance=compression.variance_kept(shares, kept).squeeze(-1),
    )


def preserved_exactly(sample: Sample, event: int) -> Preserved | None:
    """:func:`preserved` from raw attention: the mean over queries and over the heads of each kv head.

    NaN for a kv head without a stored query head. None where the raw attention of a layer is not stored.

    Args:
        sample: a sample of a compressed run.
        event: a block of the prompt.
    """
    summary = sample.summary
    if not all(sample.has(f"{RAW_ATTENTION}.{event}.{layer}") for layer in summary.layer_indices):
        return None
    group = summary.model.query_heads // summary.model.kv_heads
    heads = torch.tensor(summary.raw_heads or range(summary.model.query_heads)) // group  # [H'], kv head of each
    first, tokens = (int(sample.tensor(f"event.{name}")[event]) for name in ("first_query", "tokens"))
    there = _held_or_new(sample, event, first, tokens)
    kept = sample.held(event)[:, :, :tokens]
    rows = []
    for place, layer in enumerate(summary.layer_indices):
        shares = sample.raw_attention(event, layer).double()  # [H', queries, tokens]
        seen = causal_mask(shares.shape[1], tokens, first) & there[place][heads][:, None]
        held = kept[place][heads][:, None]
        parts = (
            compression.attention_mass_kept(shares, held),
            compression.entropy_kept(shares, held),
            compression.variance_kept(shares, held, seen),
        )
        rows.append([_by_kv_head(part, heads, summary.model.kv_heads) for part in parts])
    mass, entropy, variance = (torch.stack(column) for column in zip(*rows, strict=True))
    return Preserved(mass=mass, entropy=entropy, variance=variance)


def _held_or_new(sample: Sample, event: int, first: int, tokens: int) -> torch.Tensor:
    """Tokens that the queries of an event may see: held before it, or of its block: bool ``[L, K, tokens]``."""
    new = torch.arange(tokens) >= first
    if event == 0:
        return new.expand(sample.summary.model.layers, sample.summary.model.kv_heads, -1)
    return sample.held(event - 1)[:, :, :tokens] | new


def _by_kv_head(values: torch.Tensor, heads: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Mean of ``[H', queries]`` over queries and over each kv head's query heads: ``[K]``; NaN counts as not there."""
    return torch.stack([values[heads == head].nanmean() for head in range(kv_heads)])
