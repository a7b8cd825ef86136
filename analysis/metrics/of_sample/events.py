"""Means over the events of a sample: each event counts with the queries that it had."""

from __future__ import annotations

import torch

from kvcompress.analysis.metrics.generation_stages import weighted_mean
from kvcompress.analysis.summary.errors import SummaryError
from kvcompress.analysis.summary.reader import Sample
from kvcompress.analysis.summary.schema import ATTENTION_SCALARS, PREFILL


def check_sample(sample: Sample) -> None:
    """Refuses a sample of which nothing can be told.

    Raises:
        SummaryError: it has no events, or its model paid attention that is not a number.
    """
    where = f"sample {sample.index} of {sample.folder}"
    if sample.events == 0:
        raise SummaryError(f"{where} must have at least one event; it has none. Run the model inside the Recorder.")
    for name in ATTENTION_SCALARS:
        bad = ~torch.isfinite(sample.tensor(f"attention.{name}"))
        if bool(bad.any()):
            event, layer, head = torch.nonzero(bad)[0].tolist()
            raise SummaryError(
                f"attention.{name} of {where} must be finite; {int(bad.sum())} of its {bad.numel()} values are not, "
                f"first at event {event}, layer {layer}, head {head}. The model's attention was not a number there: "
                "run it in a wider dtype, or look at its weights."
            )


def is_prompt(sample: Sample) -> torch.Tensor:
    """Which events are of the prompt: bool ``[E]``."""
    return sample.kinds == PREFILL


def is_generated(sample: Sample) -> torch.Tensor:
    """Which events are of the generation (decoded tokens, or steps of another sampler): bool ``[E]``."""
    return sample.kinds != PREFILL


def mean_over_events(sample: Sample, name: str, which: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of a tensor over events, each weighted with its queries: ``Σ q_e v_e / Σ q_e``.

    Equal to the mean over all queries where all were observed; else their estimate.

    Args:
        sample: the sample.
        name: of a tensor ``[E, ...]``, as ``"attention.entropy"``; NaN counts as not there.
        which: bool ``[E]``; None: all events.

    Returns:
        float64 ``[...]``; NaN where there is nothing to average.
    """
    return weighted_mean(sample.tensor(name), sample.tensor("event.queries"), which)


def mean_by_event(sample: Sample, name: str) -> torch.Tensor:
    """Mean over layers and heads of a tensor ``[E, L]`` or ``[E, L, H]``: float64 ``[E]``; NaN counts as not there."""
    return sample.tensor(name).double().flatten(1).nanmean(1)
