"""What compression did to the layers: preferences and budgets, and ratios over the steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kvcompress.analysis.metrics.of_sample.compression import full_bytes, ratio_by_layer
from kvcompress.analysis.plots.bins import Floats
from kvcompress.analysis.plots.panels import named_ticks, share_axis, step_limits
from kvcompress.analysis.plots.problems import need_compression
from kvcompress.analysis.plots.stored import STEP_AXIS, floats, layer_numbers
from kvcompress.analysis.plots.style import BLUE, GREEN, ORANGE, PURPLE, VERMILION, new_figure, shades, styled
from kvcompress.analysis.plots.text import printable
from kvcompress.analysis.summary.reader import Sample

_KIB = 1024


@styled
def preference_scores(sample: Sample) -> Figure:
    """What the layer allocation saw of each layer and the budget it gave; values that the policy lacks are left out.

    Raises:
        NothingToDrawError: the sample was not compressed.
    """
    need_compression(sample, "preference_scores")
    budget = floats(sample, "compression.budget")
    panels = [
        ("Preference", floats(sample, "compression.preference"), "preference (no unit)", ORANGE),
        ("Budget", np.where(budget < 0, np.nan, budget), "tokens kept per head", BLUE),
        ("Entropy seen by the allocation", floats(sample, "compression.entropy"), "nats, as the policy sums it", GREEN),
        ("Variance seen by the allocation", floats(sample, "compression.variance"), "as the policy sums it", PURPLE),
    ]
    shown = [panel for panel in panels if np.isfinite(panel[1]).any()] or panels[1:2]
    rows = (len(shown) + 1) // 2
    figure = new_figure(0.8 + 2.7 * rows, f"Layers and their budgets, {policy_name(sample)}, sample {sample.index}")
    grid = figure.subplots(rows, min(len(shown), 2), squeeze=False)
    for axes, (title, values, unit, colour) in zip(grid.flat, shown, strict=False):
        layer_bars(axes, values, layer_numbers(sample), colour)
        axes.set(title=title, ylabel=unit)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    return figure


@styled
def compression_ratios(sample: Sample) -> Figure:
    """Share of the tokens that each layer has removed, over the steps and in the end, and the cache's bytes.

    Raises:
        NothingToDrawError: the sample was not compressed.
    """
    need_compression(sample, "compression_ratios")
    removed: Floats = ratio_by_layer(sample).numpy()
    layers = layer_numbers(sample)
    figure = new_figure(7.4, f"Compression by {policy_name(sample)}, sample {sample.index}")
    panels = figure.subplot_mosaic([["steps", "steps"], ["end", "bytes"]], height_ratios=[1.2, 1])
    for place, colour in enumerate(shades(len(layers))):
        panels["steps"].plot(removed[:, place], color=colour, marker=".", markevery=max(1, sample.events // 20))
    _name_lines(panels["steps"], layers)
    panels["steps"].plot(removed.mean(1), color="black", linewidth=2.2, linestyle="--", label="mean of the layers")
    panels["steps"].legend(loc="best", ncols=3)
    share_axis(panels["steps"], "tokens removed / tokens seen")
    panels["steps"].set(xlabel=STEP_AXIS, title="Compression ratio over the steps")
    layer_bars(panels["end"], removed[-1], layers, BLUE)
    share_axis(panels["end"], "tokens removed / tokens seen")
    panels["end"].set_title("Compression ratio after the last step")
    _bytes(panels["bytes"], sample)
    for name in ("steps", "bytes"):
        step_limits(panels[name], sample.events)
    return figure


def policy_name(sample: Sample) -> str:
    """The policy's name, fit for a picture."""
    return printable(str((sample.summary.policy or {}).get("name", "no policy")), 40)


def layer_bars(axes: Axes, values: Floats, layers: Sequence[int], colour: str) -> None:
    """A bar per layer; a layer without a value is marked ``-``."""
    axes.bar(range(len(values)), np.nan_to_num(values), color=colour, width=0.75)
    for place in np.flatnonzero(~np.isfinite(values)):
        axes.text(float(place), 0, "-", ha="center", va="bottom")
    axes.set_xlim(-0.6, len(values) - 0.4)
    named_ticks(axes.xaxis, layers, 16)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("layer")


def _bytes(axes: Axes, sample: Sample) -> None:
    every = max(1, sample.events // 20)
    axes.plot(floats(sample, "compression.bytes") / _KIB, color=VERMILION, marker="o", markevery=every, label="held")
    axes.axhline(full_bytes(sample) / _KIB, color="black", linestyle="--", label="full cache after the last step")
    axes.set_ylim(0, 1.06 * max(full_bytes(sample), float(floats(sample, "compression.bytes").max())) / _KIB)
    axes.set(xlabel=STEP_AXIS, ylabel="KiB", title="Memory of keys and values")
    axes.legend(loc="best")


def _name_lines(axes: Axes, layers: Sequence[int], most: int = 8) -> None:
    chosen = {round(place) for place in np.linspace(0, len(layers) - 1, min(len(layers), most))}
    for place in chosen:
        axes.lines[place].set_label(f"layer {layers[place]}")
