"""What changed in a sample's attention from one step to another."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from kvcompress.analysis.metrics.step_change import change
from kvcompress.analysis.summary.reader import Sample
from kvcompress.analysis.summary.schema import PREFILL


class StepChanges(NamedTuple):
    """Changes between generated events that follow each other among those whose mass per token is stored.

    Attributes:
        events: the events, ``steps + 1`` of them.
        total_variation: mass that moved, of the mean over query heads: float64 ``[steps, L]``, in [0, 1].
        cosine: similarity before and after: float64 ``[steps, L]``, in [0, 1].
    """

    events: list[int]
    total_variation: torch.Tensor
    cosine: torch.Tensor


def step_changes(sample: Sample) -> StepChanges | None:
    """Changes from step to step; None where fewer than two generated events have their mass per token stored.

    Mass per token is taken as a distribution over the tokens; tokens that came in between count as 0 before.
    """
    events = [event for event in sample.token_mass_events if int(sample.kinds[event]) != PREFILL]
    if len(events) < 2:
        return None
    moved, alike = [], []
    before = _shares(sample, events[0])
    for event in events[1:]:
        after = _shares(sample, event)
        step = change(before, after)
        moved.append(step.total_variation.squeeze(1))
        alike.append(step.cosine.squeeze(1))
        before = after
    return StepChanges(events=events, total_variation=torch.stack(moved), cosine=torch.stack(alike))


def map_change(sample: Sample, before: int, after: int) -> torch.Tensor:
    """Difference of two events' binned maps, ``after - before``: float32 ``[L, H, 64, 64]``.

    Args:
        sample: the sample.
        before: an event with more than one query.
        after: another, over the same number of tokens.

    Raises:
        ValueError: an event without a map, or over another number of tokens, whose bins are others.
    """
    with_maps = sample.tensor("heatmap.event").tolist()
    for name, event in (("before", before), ("after", after)):
        if event not in with_maps:
            raise ValueError(f"{name} must be an event with a map, one of {with_maps}; got {event}")
    tokens = sample.tensor("event.tokens")
    if int(tokens[before]) != int(tokens[after]):
        raise ValueError(
            f"before and after must see the same number of tokens; events {before} and {after} see "
            f"{int(tokens[before])} and {int(tokens[after])}. Compare steps over one sequence."
        )
    maps = sample.tensor("heatmap.mass")
    return maps[with_maps.index(after)] - maps[with_maps.index(before)]


def section(sample: Sample) -> dict[str, Any] | None:
    """What a report says about changes from step to step; None of fewer than two generated steps."""
    found = step_changes(sample)
    if found is None:
        return None
    return {
        "events": found.events,
        "total_variation": found.total_variation.nanmean(1),
        "cosine": found.cosine.nanmean(1),
        "layers": {"total_variation": found.total_variation.nanmean(0), "cosine": found.cosine.nanmean(0)},
    }


def _shares(sample: Sample, event: int) -> torch.Tensor:
    """Mass per token as a distribution: float64 ``[L, 1, tokens]``; a layer that took no part is 0."""
    mass = sample.token_mass(event).double().nan_to_num()
    total = mass.sum(1, keepdim=True)
    return (mass / torch.where(total > 0, total, 1)).unsqueeze(1)
