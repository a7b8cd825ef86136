"""Compression of a sample: what each layer and head kept, and what that keeps of the attention."""

from __future__ import annotations

from typing import Any

import torch

from kvcompress.analysis.metrics import compression
from kvcompress.analysis.metrics.of_sample.events import is_prompt
from kvcompress.analysis.metrics.of_sample.preserved import preserved, preserved_exactly
from kvcompress.analysis.summary.reader import Sample
from kvcompress.analysis.summary.schema import DECODE


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
            exact = preserved_exactly(sample, event)
            parts = (preserved(sample, event) if exact is None else exact)._asdict()
            rows.append(
                {"event": event, "basis": "mass per token" if exact is None else "raw attention"}
                | {name: values.nanmean() for name, values in parts.items()}
                | {"layers": {name: values.nanmean(1) for name, values in parts.items()}}
            )
    return rows


def _element_bytes(dtype: str) -> int:
    kind = getattr(torch, dtype.removeprefix("torch."), None)
    if not isinstance(kind, torch.dtype):
        raise ValueError(f"model.dtype must name a dtype of torch, as 'float32'; got {dtype!r}. Capture again.")
    return kind.itemsize
