"""Which token leaves when, in which layer and head."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from kvcompress.analysis.plots.bins import Whole
from kvcompress.analysis.plots.compression import policy_name
from kvcompress.analysis.plots.panels import (
    colour_bar,
    colour_map,
    from_zero,
    mark_prompt,
    plain_numbers,
    step_limits,
    whole_ticks,
)
from kvcompress.analysis.plots.problems import need_compression
from kvcompress.analysis.plots.stored import STEP_AXIS, layer_numbers, whole
from kvcompress.analysis.plots.style import BLUE, ORANGE, VERMILION, new_figure, styled
from kvcompress.analysis.summary.reader import Sample

STAGES = ((1, "in its layer's prefill", BLUE, "o"), (2, "by the cascade", ORANGE, "s"), (3, "decoding", VERMILION, "^"))
_MOST_ROW_NAMES = 40
_FAR_APART = 20  # numbers of evictions that a linear axis cannot show beside each other


@styled
def eviction_timeline(sample: Sample) -> Figure:
    """The step at which each token left each kv head, and how many left at every step, by stage.

    Raises:
        NothingToDrawError: the sample was not compressed.
    """
    need_compression(sample, "eviction_timeline")
    evicted = whole(sample, "compression.evicted_event")  # [L, K, T]
    rows = evicted.shape[0] * evicted.shape[1]
    map_height = float(np.clip(0.16 * rows, 2.4, 6.5))
    figure = new_figure(map_height + 3.0, f"Evictions by {policy_name(sample)}, sample {sample.index}")
    above, below = figure.subplots(2, 1, height_ratios=[map_height, 1.9])
    _map(above, evicted, layer_numbers(sample), sample)
    _counts(below, evictions_by_stage(sample))
    step_limits(below, sample.events)
    return figure


def evictions_by_stage(sample: Sample) -> Whole:
    """How many (layer, kv head, token) were evicted at each event: int64 ``[3, E]`` for the stages 1, 2, 3."""
    events, stages = whole(sample, "compression.evicted_event"), whole(sample, "compression.evicted_stage")
    counts = [np.bincount(events[(stages == stage) & (events >= 0)], minlength=sample.events) for stage, *_ in STAGES]
    return np.stack(counts).astype(np.int64)


def _map(axes: Axes, evicted: Whole, layers: list[int], sample: Sample) -> None:
    count, heads, tokens = evicted.shape
    shown = np.ma.masked_less(evicted.reshape(count * heads, tokens), 0)
    last = max(sample.events - 1, 1)
    image = axes.imshow(
        shown,
        aspect="auto",
        interpolation="nearest",
        cmap=colour_map("viridis"),
        norm=Normalize(0, last),
        extent=(0, tokens, count * heads - 0.5, -0.5),
    )
    axes.grid(visible=False)
    rows_are_high = count * heads <= _MOST_ROW_NAMES
    for edge in range(1, count):
        axes.axhline(edge * heads - 0.5, color="white", linewidth=1 if rows_are_high else 0.4)
    every = max(1, -(-count // _MOST_ROW_NAMES))
    places = [place * heads + (heads - 1) / 2 for place in range(0, count, every)]
    axes.set_yticks(places, [str(layer) for layer in layers[::every]])
    whole_ticks(axes.xaxis)
    mark_prompt(axes, sample.summary.prompt_tokens, tokens)
    heads_note = f" ({heads} kv heads each)" if heads > 1 else ""
    axes.set(xlabel="token position", ylabel=f"layer{heads_note}")
    colour_bar(image, axes, "evicted at step (blank: held to the end)", whole=True)


def _counts(axes: Axes, counts: Whole) -> None:
    for (_, name, colour, marker), row in zip(STAGES, counts, strict=True):
        if row.any():
            steps = np.flatnonzero(row)
            axes.vlines(steps, 0, row[steps], color=colour, linewidth=1.2)
            axes.plot(steps, row[steps], linestyle="none", marker=marker, color=colour, label=f"{name}: {row.sum():,}")
    present = counts[counts > 0]
    if len(present) and present.max() > _FAR_APART * present.min():
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=0)
        plain_numbers(axes.yaxis)
    else:
        from_zero(axes)
        whole_ticks(axes.yaxis, 5)
    axes.set(xlabel=STEP_AXIS, ylabel="evicted\n(tokens × layers × heads)")
    if counts.any():
        axes.legend(loc="upper right", ncols=3)
    else:
        axes.set_title("Nothing was evicted")
