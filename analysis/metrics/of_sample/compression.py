"""Compression of a sample: what each layer and head kept, and what that keeps of the attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from kvcompress.analysis.metrics import compression
from kvcompress.analysis.metrics.of_sample.events import is_prompt
from kvcompress.analysis.summary.reader import Sample
from kvcompress.analysis.summary.schema import DECODE


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


def ratio_by_layer(sample: Sample) -> torch.Tensor:
    """Fraction of the tokens seen that was removed, after each event: float64 ``[E, L]``."""
    held = sample.tensor("compression.held").double().mean(2)
    return compression.compression_ratio(held, sample.tensor("event.tokens")[:, None])


def full_bytes(sample: Sample) -> int:
    """Bytes that the keys and values of all tokens of the captured layers take in the model's dtype."""
    model = sample.summary.model
    return compression.cache_bytes(
        tokens=int(sample.tensor("event.tokens")[-1]),
        layers=model.layers,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        value_dim=model.value_dim,
        element_bytes=_element_bytes(model.dtype),
    )


def preserved(sample: Sample, event: int) -> Preserved:
    """What the tokens held after an event hold of the attention paid in it.

    From the mass per token (mean over query heads and over the queries at or after the token), taken as a distribution
    over the tokens. Where queries pay much attention to near keys, this weighs late tokens more than the mean over
    queries does; with raw attention, :func:`kvcompress.analysis.metrics.compression.attention_mass_kept` is exact.

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


def section(sample: Sample) -> dict[str, Any] | None:
    """What a report says about compression; None of a run without."""
    if not sample.compressed:
        return None
    held, full = sample.tensor("compression.held"), full_bytes(sample)
    size, stage = sample.tensor("compression.bytes"), sample.tensor("compression.evicted_stage")
    decoded = int((sample.kinds == DECODE).sum())
    return {
        "policy": sample.summary.policy,
        "ratio": ratio_by_layer(sample)[-1].mean(),
        "ratio_by_event": ratio_by_layer(sample).mean(1),
        "bytes": {"held": size[-1], "full": full, "most": size.max(), "removed_fraction": 1 - int(size[-1]) / full},
        "information_preserved": _information(sample),
        "layers": {
            "layer": sample.summary.layer_indices,
            "budget": sample.tensor("compression.budget"),
            "budget_share": compression.budget_share(sample.tensor("compression.budget")),
            "budget_utilisation": utilisation(sample)[-1],
            "preference": sample.tensor("compression.preference"),
            "held_per_head": held[-1].double().mean(1),
            "ratio": ratio_by_layer(sample)[-1],
            "eviction_frequency": compression.eviction_frequency(stage, decoded),
        },
        "heads": {"held": held[-1], "evicted_prefill_cascade_decode": compression.evicted_by_stage(stage)},
        "evictions_by_event": compression.evictions_by_event(
            sample.tensor("compression.evicted_event"), sample.events
        ).sum(1),
    }


def utilisation(sample: Sample) -> torch.Tensor:
    """Tokens held as a share of each layer's budget, after each event: float64 ``[E, L]``; NaN without a budget."""
    window = (sample.summary.policy or {}).get("window_size")
    budget = sample.tensor("compression.budget")
    if not isinstance(window, int):
        budget, window = torch.full_like(budget, -1), 0
    return compression.budget_utilisation(sample.tensor("compression.held"), budget, window)


def _information(sample: Sample) -> list[dict[str, Any]]:
    """What is preserved of each event of the prompt whose mass per token is stored."""
    prompt = is_prompt(sample)
    rows = []
    for event in sample.token_mass_events:
        if bool(prompt[event]):
            parts = preserved(sample, event)._asdict()
            rows.append(
                {"event": event}
                | {name: values.nanmean() for name, values in parts.items()}
                | {"layers": {name: values.nanmean(1) for name, values in parts.items()}}
            )
    return rows


def _element_bytes(dtype: str) -> int:
    kind = getattr(torch, dtype.removeprefix("torch."), None)
    if not isinstance(kind, torch.dtype):
        raise ValueError(f"model.dtype must name a dtype of torch, as 'float32'; got {dtype!r}. Capture again.")
    return kind.itemsize
