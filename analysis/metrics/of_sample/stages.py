"""The stages of a sample's generation: prompt, early, middle, late."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from kvcompress.analysis.metrics.generation_stages import STAGES, stage_changes, stage_means, stages
from kvcompress.analysis.summary.reader import Sample
from kvcompress.analysis.summary.schema import ATTENTION_SCALARS


def by_stage(sample: Sample) -> dict[str, torch.Tensor]:
    """Each metric of attention in each stage, mean over queries and heads: float64 ``[4, L]``; NaN without events."""
    stage, weights = stages(sample.kinds), sample.tensor("event.queries")
    metrics = {
        name: stage_means(sample.tensor(f"attention.{name}"), stage, weights).nanmean(2) for name in ATTENTION_SCALARS
    }
    metrics["keys"] = stage_means(sample.tensor("attention.keys"), stage, weights)
    return metrics


def held_by_stage(sample: Sample) -> torch.Tensor | None:
    """Tokens that a head holds, mean over heads and over the stage's events: float64 ``[4, L]``; None uncompressed."""
    if not sample.compressed:
        return None
    return stage_means(sample.tensor("compression.held").double().mean(2), stages(sample.kinds))


def section(sample: Sample) -> dict[str, Any]:
    """What a report says about the stages of the generation."""
    stage, metrics, held = stages(sample.kinds), by_stage(sample), held_by_stage(sample)
    if held is not None:
        metrics["held"] = held
    changes = {name: stage_changes(values.nanmean(1)) for name, values in metrics.items()}
    return {
        "stages": [
            {
                "name": name,
                **_extent(stage == number),
                "metrics": {metric: values[number].nanmean() for metric, values in metrics.items()},
                "layers": {metric: values[number] for metric, values in metrics.items()},
            }
            for number, name in enumerate(STAGES)
        ],
        "changes": [
            {"before": before, "after": after, **{name: values[place] for name, values in changes.items()}}
            for place, (before, after) in enumerate(pairwise(STAGES))
        ],
    }


def _extent(which: torch.Tensor) -> dict[str, int | None]:
    events = torch.nonzero(which).flatten().tolist()
    return {
        "events": len(events),
        "first_event": events[0] if events else None,
        "last_event": events[-1] if events else None,
    }
