"""Influence in a sample: which tokens the decoded ones looked at, and how much of that was the prompt."""

from __future__ import annotations

from typing import Any

import torch

from kvcompress.analysis.metrics.influence import CrossMass
from kvcompress.analysis.metrics.of_sample.events import is_generated, is_prompt, mean_by_event, mean_over_events
from kvcompress.analysis.metrics.top import largest
from kvcompress.analysis.summary.reader import Sample
from kvcompress.analysis.summary.schema import DECODE

BOUNDARY_TOKENS = 8


def influence(sample: Sample) -> torch.Tensor | None:
    """Mean mass that a decoded token paid to each token, mean over query heads: float64 ``[L, T]``.

    Range: [0, 1]; a row sums to 1 unless a learned sink took some. None without decoded tokens.
    """
    decoded = sample.kinds == DECODE
    if not bool(decoded.any()):
        return None
    return sample.tensor("token.influence").double() / int(sample.tensor("event.queries")[decoded].sum())


def mass_received(sample: Sample) -> tuple[str, torch.Tensor]:
    """Mass that each token got, mean over layers, and who paid it: float64 ``[tokens]``.

    From all decoded tokens (:func:`influence`); where there are none, from the queries of the last event whose mass per
    token is stored.

    Raises:
        ValueError: neither is there.
    """
    paid = influence(sample)
    if paid is not None:
        return "decoded tokens", paid.nanmean(0)
    if not sample.token_mass_events:
        raise ValueError(
            f"sample {sample.index} of {sample.folder} must have decoded tokens or an event whose mass per token is "
            "stored; it has neither. Capture again."
        )
    event = sample.token_mass_events[-1]
    return f"queries of event {event}", sample.token_mass(event).double().nanmean(0)


def cross(sample: Sample) -> CrossMass:
    """Mass between the prompt and the rest, mean over queries: each float64 ``[L, H]``; NaN without such events."""
    (p_to_p, p_to_g), (g_to_p, g_to_g) = (_to_prompt(sample, which(sample)) for which in (is_prompt, is_generated))
    return CrossMass(
        prompt_to_prompt=p_to_p, prompt_to_generated=p_to_g, generated_to_prompt=g_to_p, generated_to_generated=g_to_g
    )


def boundary(sample: Sample, width: int = BOUNDARY_TOKENS) -> torch.Tensor | None:
    """Share of the decoded tokens' mass within ``width`` tokens of the prompt's end: float64 ``[L]``; None without."""
    paid = influence(sample)
    if paid is None:
        return None
    end = sample.summary.prompt_tokens
    return paid[:, max(end - width, 0) : end + width].sum(1)


def section(sample: Sample) -> dict[str, Any]:
    """What a report says about influence."""
    paid, end, texts = influence(sample), sample.summary.prompt_tokens, sample.summary.tokens
    generated = is_generated(sample)
    return {
        "most_influential_prompt_tokens": None
        if paid is None
        else largest(paid[:, :end].nanmean(0), texts, "influence"),
        "cross_mass": {name: values.nanmean() for name, values in cross(sample)._asdict().items()},
        "prompt_mass_by_generated_event": mean_by_event(sample, "attention.prompt_mass")[generated],
        "prompt_mass_by_layer": mean_over_events(sample, "attention.prompt_mass", generated).nanmean(1),
        "boundary": {"tokens_each_side": BOUNDARY_TOKENS, "position": end, "mass_by_layer": boundary(sample)},
    }


def most_attended(sample: Sample) -> dict[str, Any]:
    """The tokens that got most mass, and who paid it; see :func:`mass_received`."""
    paid_by, mass = mass_received(sample)
    return {"paid_by": paid_by, "tokens": largest(mass, sample.summary.tokens, "mass")}


def _to_prompt(sample: Sample, which: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mass on the prompt, and on all other tokens."""
    prompt = mean_over_events(sample, "attention.prompt_mass", which)
    learned = mean_over_events(sample, "attention.learned_sink_mass", which)
    return prompt, (1 - learned - prompt).clamp(min=0)
