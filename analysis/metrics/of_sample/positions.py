"""Positions in a sample: how far back attention reaches, and how that goes as the sequence grows."""

from __future__ import annotations

from typing import Any

import torch

from kvcompress.analysis.metrics.of_sample.events import is_generated, is_prompt, mean_by_event, mean_over_events
from kvcompress.analysis.metrics.positions import cumulative_mass, distance_bin_bounds, distance_holding
from kvcompress.analysis.summary.reader import Sample

MARKS = (80, 90)  # percent


def profile(sample: Sample, which: torch.Tensor | None = None) -> torch.Tensor:
    """Mass by distance bin, mean over queries: float64 ``[L, H, 33]``.

    Bins as of :func:`kvcompress.analysis.metrics.positions.distance_bin`; ``which`` is bool ``[E]``, None: all events.
    """
    return mean_over_events(sample, "attention.distance_mass", which)


def recent_and_distant(sample: Sample, which: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mass on the nearest ``recent_tokens`` keys, and on all others: two float64 ``[L, H]``, in [0, 1]."""
    recent = mean_over_events(sample, "attention.recent_mass", which)
    learned = mean_over_events(sample, "attention.learned_sink_mass", which)
    return recent, (1 - learned - recent).clamp(min=0)


def section(sample: Sample) -> dict[str, Any]:
    """What a report says about positions."""
    recent, distant = recent_and_distant(sample)
    used = _bins_used(sample)
    return {
        "bins": distance_bin_bounds(used),
        "prompt": _profile_section(sample, is_prompt(sample), used),
        "generated": _profile_section(sample, is_generated(sample), used),
        "recent_and_distant": {
            "recent_tokens": sample.summary.settings.recent_tokens,
            "layers": {"recent": recent.nanmean(1), "distant": distant.nanmean(1)},
        },
        "sequence_growth": {
            "tokens": sample.tensor("event.tokens"),
            "keys": mean_by_event(sample, "attention.keys"),
            "entropy": mean_by_event(sample, "attention.entropy"),
            "recent_mass": mean_by_event(sample, "attention.recent_mass"),
        },
    }


def _profile_section(sample: Sample, which: torch.Tensor, used: int) -> dict[str, Any] | None:
    if not bool(which.any()):
        return None
    layers = profile(sample, which).nanmean(1)[:, :used]
    overall = layers.nanmean(0)
    bounds = distance_bin_bounds(used)
    marks = {}
    for percent in MARKS:
        place = int(distance_holding(overall.nan_to_num(), percent))
        marks[str(percent)] = None if place < 0 else {"bin": place, "distances": bounds[place]}
    return {"mass": overall, "cumulative": cumulative_mass(overall), "marks": marks, "layers": layers}


def _bins_used(sample: Sample) -> int:
    """Bins up to the last with any mass."""
    places = torch.nonzero(profile(sample).nan_to_num().sum((0, 1)))
    return int(places[-1]) + 1 if len(places) else 1
