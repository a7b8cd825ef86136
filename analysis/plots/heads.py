"""Key and value heads: how sparse they are, and how much of them can go."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from kvcompress.analysis.metrics.of_sample.cache import BOTH, potential
from kvcompress.analysis.plots.bins import Floats
from kvcompress.analysis.plots.layers import KEEP_PERCENT, KEEP_PERCENTS, dimension_potential
from kvcompress.analysis.plots.panels import colour_bar, grid_image, named_ticks, share_axis, spread_norm, write_values
from kvcompress.analysis.plots.stored import floats, layer_numbers, mean_over
from kvcompress.analysis.plots.style import BLUE, GREEN, VERMILION, new_figure, styled
from kvcompress.analysis.summary.reader import Sample
from kvcompress.analysis.summary.schema import TOKEN_SPARSITY_THRESHOLD

_MOST_WRITTEN = 16


@styled
def head_sparsity(sample: Sample) -> Figure:
    """Sparsity of every layer's and head's keys and values, at a tenth of the head's scale."""
    place = threshold_place(sample)
    threshold = sample.summary.settings.sparsity_thresholds[place]
    maps = [floats(sample, f"kv.{target}_sparsity")[..., place] for target in BOTH]
    title = (
        f"Sparsity of kv heads, sample {sample.index}: magnitude below {100 * threshold:g} % of the root mean square"
    )
    return _maps(maps, sample, title, "share of the entries")


@styled
def pruning_heatmap(sample: Sample) -> Figure:
    """Share of each kv head's dimensions that can go while 99 % of its energy stays, by layer and head."""
    title = f"Dimensions that can go with {KEEP_PERCENT:g} % of the energy kept, sample {sample.index}"
    return _maps([dimension_potential(sample, target) for target in BOTH], sample, title, "share of the dimensions")


@styled
def head_pruning_potential(sample: Sample) -> Figure:
    """Share of each kv head's dimensions that can go while most of its energy stays: mean over layers."""
    figure = new_figure(4.2, f"Dimensions of a kv head that can go, sample {sample.index}, mean over layers")
    grid = figure.subplots(1, 2, sharey=True)
    width = 0.8 / len(KEEP_PERCENTS)
    for axes, target in zip(grid, BOTH, strict=True):
        for place, (percent, colour) in enumerate(zip(KEEP_PERCENTS, (BLUE, VERMILION, GREEN), strict=True)):
            share = mean_over(potential(sample, target, percent).dimensions.numpy(), 0)
            places = np.arange(len(share)) + (place - 1) * width
            axes.bar(
                places, np.nan_to_num(share), width * 0.92, color=colour, label=f"{percent:g} % of the energy kept"
            )
        named_ticks(axes.xaxis, range(len(share)), 16)
        axes.grid(visible=False, axis="x")
        axes.set(title=f"{target.capitalize()}s", xlabel="kv head")
    share_axis(grid[0], "share of the dimensions")
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure


def threshold_place(sample: Sample, threshold: float = TOKEN_SPARSITY_THRESHOLD) -> int:
    """Which of the captured sparsity thresholds is nearest to one."""
    return int(np.argmin(np.abs(np.array(sample.summary.settings.sparsity_thresholds) - threshold)))


def _maps(maps: list[Floats], sample: Sample, title: str, unit: str) -> Figure:
    """Keys and values beside each other, layers by heads, in the same colours."""
    layers, heads = maps[0].shape
    figure = new_figure(float(np.clip(1.6 + 0.28 * layers, 3.2, 9.0)), title)
    grid = figure.subplots(1, 2, sharey=True)
    norm = spread_norm(np.stack(maps), 0.0)
    for axes, values, target in zip(grid, maps, BOTH, strict=True):
        image = grid_image(axes, values, norm)
        named_ticks(axes.xaxis, range(heads), 16)
        axes.set(title=f"{target.capitalize()}s", xlabel="kv head")
        if layers <= _MOST_WRITTEN and heads <= _MOST_WRITTEN // 2:
            write_values(axes, image, values)
    named_ticks(grid[0].yaxis, layer_numbers(sample))
    grid[0].set_ylabel("layer")
    colour_bar(image, list(grid), unit)
    return figure
