"""Attention of a sample: by layer, by head, and over its events."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from kvcompress.analysis.metrics.attention_layers import layer_similarity, trend
from kvcompress.analysis.metrics.of_sample.events import (
    is_generated,
    is_prompt,
    mean_by_event,
    mean_over_events,
)
from kvcompress.analysis.summary.reader import Sample
from kvcompress.analysis.summary.schema import ATTENTION_SCALARS


class LayerSimilarity(NamedTuple):
    """Similarity of layers.

    Attributes:
        basis: what was compared.
        matrix: float64 ``[L, L]``, in [0, 1]; NaN for a layer that took no part.
    """

    basis: str
    matrix: torch.Tensor


def by_head(sample: Sample, which: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Each metric of :mod:`kvcompress.analysis.metrics.attention`, mean over queries: float64 ``[L, H]``.

    ``mean`` is the mean over all pairs of a query and a key that it sees, ``focus`` one over the mean entropy.

    Args:
        sample: the sample.
        which: bool ``[E]``, the events; None: all.
    """
    metrics = {name: mean_over_events(sample, f"attention.{name}", which) for name in ATTENTION_SCALARS}
    keys = mean_over_events(sample, "attention.keys", which)  # [L]
    metrics["mean"] = (1 - metrics["learned_sink_mass"]) / keys[:, None]
    metrics["focus"] = 1 / metrics["entropy"]
    return metrics


def by_layer(sample: Sample, which: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """:func:`by_head`, mean over heads: float64 ``[L]``; ``focus`` is one over the layer's mean entropy."""
    metrics = {name: values.nanmean(1) for name, values in by_head(sample, which).items()}
    metrics["focus"] = 1 / metrics["entropy"]
    return metrics


def overall(sample: Sample, which: torch.Tensor | None = None) -> dict[str, torch.Tensor] | None:
    """:func:`by_layer`, mean over layers: a float64 number each; None without such events."""
    if which is not None and not bool(which.any()):
        return None
    metrics = {name: values.nanmean() for name, values in by_layer(sample, which).items()}
    metrics["focus"] = 1 / metrics["entropy"]
    return metrics


def by_event(sample: Sample) -> dict[str, torch.Tensor]:
    """Each metric at each event, mean over layers and heads: float64 ``[E]``."""
    metrics = {name: mean_by_event(sample, f"attention.{name}") for name in ATTENTION_SCALARS}
    metrics["focus"] = 1 / metrics["entropy"]
    metrics["keys"] = mean_by_event(sample, "attention.keys")
    return metrics


def coverage(sample: Sample, which: torch.Tensor | None = None) -> torch.Tensor:
    """Keys that hold 50, 80, 90, 95, 99 percent of the mass, mean over queries and heads: float64 ``[L, 5]``."""
    return mean_over_events(sample, "attention.coverage", which).nanmean(1)


def similarity_of_layers(sample: Sample) -> LayerSimilarity:
    """Cosine between the layers' attention, each the mean over its heads.

    Between the binned maps of the last event with more than one query; where there is none, between the mass by
    position bin, mean over events.
    """
    with_maps = sample.tensor("heatmap.event").tolist()
    if with_maps:
        maps = sample.tensor("heatmap.mass")[-1].double().nanmean(1)  # [L, 64, 64]
        return LayerSimilarity(basis=f"maps of event {with_maps[-1]}", matrix=layer_similarity(maps.nan_to_num()))
    profile = mean_over_events(sample, "attention.position_mass").nanmean(1)  # [L, 64]
    return LayerSimilarity(basis="mass by position", matrix=layer_similarity(profile.nan_to_num()))


def section(sample: Sample) -> dict[str, Any]:
    """What a report says about a sample's attention."""
    layers = by_layer(sample)
    summary = sample.summary
    generated = is_generated(sample)
    over_time = by_event(sample)
    return {
        "overall": overall(sample),
        "prompt": overall(sample, is_prompt(sample)),
        "generated": overall(sample, generated),
        "layers": [
            {"layer": number, "name": name, **{metric: values[place] for metric, values in layers.items()}}
            for place, (number, name) in enumerate(zip(summary.layer_indices, summary.layer_names, strict=True))
        ],
        "heads": by_head(sample),
        "coverage": {"percent": summary.settings.coverage_percent, "layers": coverage(sample)},
        "layer_similarity": similarity_of_layers(sample)._asdict(),
        "evolution": {
            "step": sample.tensor("event.step"),
            "kind": sample.kinds,
            "metrics": over_time,
            "trend_while_generating": {
                name: trend(values[generated])._asdict() for name, values in over_time.items() if bool(generated.any())
            },
        },
    }
