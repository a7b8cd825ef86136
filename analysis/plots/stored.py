"""A sample's tensors as arrays, and what its events and layers are called in pictures."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kvcompress.analysis.plots.bins import Floats, Whole
from kvcompress.analysis.plots.problems import NothingToDrawError
from kvcompress.analysis.plots.text import counted
from kvcompress.analysis.summary.reader import Sample
from kvcompress.analysis.summary.schema import DECODE, PREFILL, STEP

KIND_NAMES: Final = {PREFILL: "prefill", DECODE: "decode", STEP: "pass"}
STEP_AXIS: Final = "step (event of the capture)"


def floats(sample: Sample, name: str, *place: int | slice) -> Floats:
    """A tensor of a sample in float64, or a part of it: only that part is read.

    Args:
        sample: what was captured.
        name: of the tensor.
        place: index along its first axes.
    """
    values: Floats = sample.tensor(name)[place].double().numpy()
    return values


def whole(sample: Sample, name: str) -> Whole:
    """An int64 tensor of a sample."""
    values: Whole = sample.tensor(name).numpy()
    return values


def mean_over(values: npt.NDArray[Any], *axes: int) -> Floats:
    """Mean over axes, leaving out NaN; NaN where there is nothing else."""
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis=axes)
    count = known.sum(axis=axes)
    mean: Floats = np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
    return mean


def layer_numbers(sample: Sample) -> list[int]:
    """The layers' numbers in the model."""
    return list(sample.summary.layer_indices)


def event_tokens(sample: Sample) -> Whole:
    """Tokens seen after each event."""
    return whole(sample, "event.tokens")


def some_event(sample: Sample, view: str) -> None:
    """Checks that a sample has an event.

    Raises:
        NothingToDrawError: it has none.
    """
    if not sample.events:
        raise NothingToDrawError(f"{view} needs at least one event; sample {sample.index} has none")


def event_name(sample: Sample, event: int) -> str:
    """What an event is called: ``step 3 (decode, 1 query)``."""
    kind = KIND_NAMES[int(sample.kinds[event])]
    queries = int(whole(sample, "event.queries")[event])
    return f"step {event} ({kind}, {counted(queries, 'query')})"


def head_name(sample: Sample, head: int | None) -> str:
    """What a query head, or the mean over heads, is called."""
    if head is not None:
        return f"head {head}"
    return f"mean over {counted(sample.summary.model.query_heads, 'head')}"
