"""Layers beside each other: how alike their attention is, and what their keys and values look like."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from kvcompress.analysis.metrics.of_sample.attention import similarity_of_layers
from kvcompress.analysis.metrics.of_sample.cache import BOTH, What, potential
from kvcompress.analysis.plots.bins import Floats
from kvcompress.analysis.plots.compression import layer_bars
from kvcompress.analysis.plots.panels import colour_bar, from_zero, grid_image, named_ticks, share_axis, write_values
from kvcompress.analysis.plots.stored import floats, layer_numbers, mean_over, some_event
from kvcompress.analysis.plots.style import BLUE, GREEN, VERMILION, line_colours, new_figure, styled
from kvcompress.analysis.summary.reader import Sample

KEEP_PERCENTS = (90.0, 95.0, 99.0)  # of the energy
KEEP_PERCENT = 99.0  # as in the analysis report
_MOST_WRITTEN = 16


@styled
def layer_similarity(sample: Sample) -> Figure:
    """Cosine between the layers' attention by position.

    Raises:
        NothingToDrawError: the sample has no event.
    """
    some_event(sample, "layer_similarity")
    similarity = similarity_of_layers(sample)
    values: Floats = similarity.matrix.numpy()
    layers = layer_numbers(sample)
    figure = new_figure(6.4, f"Similarity of the layers' attention, sample {sample.index}: {similarity.basis}")
    axes = figure.subplots()
    image = grid_image(axes, values, Normalize(_tenth_below(values), 1))
    axes.set_aspect("equal")
    named_ticks(axes.xaxis, layers, 20)
    named_ticks(axes.yaxis, layers, 20)
    axes.set(xlabel="layer", ylabel="layer")
    if len(layers) <= _MOST_WRITTEN:
        write_values(axes, image, values)
    colour_bar(image, axes, "cosine similarity (1: the same)")
    return figure


@styled
def layer_statistics(sample: Sample) -> Figure:
    """Sparsity at every threshold, and norms, of each layer's keys and values; mean over heads."""
    layers = layer_numbers(sample)
    figure = new_figure(7.2, f"Keys and values by layer, sample {sample.index}, mean over kv heads")
    grid = figure.subplots(2, 2)
    for axes, target in zip(grid[0], BOTH, strict=True):
        _sparsity_lines(axes, mean_over(floats(sample, f"kv.{target}_sparsity"), 1), sample)
        axes.set_title(f"Sparsity of the {target}s")
        named_ticks(axes.xaxis, layers, 16)
        axes.set_xlabel("layer")
    handles, names = grid[0, 1].get_legend_handles_labels()
    title = "sparsity: magnitude below this share of the head's root mean square"
    figure.legend(handles, names, title=title, loc="outside lower center", ncols=len(names))
    for axes, target, colour in zip(grid[1], BOTH, (BLUE, VERMILION), strict=True):
        layer_bars(axes, mean_over(floats(sample, f"kv.{target}_norm"), 1, 2), layers, colour)
        axes.set(title=f"Norm of the {target}s", ylabel="mean Euclidean norm per token")
    return figure


@styled
def layer_pruning_potential(sample: Sample) -> Figure:
    """Share of each layer's dimensions, and of its tokens, that can go while most of the energy stays."""
    layers = layer_numbers(sample)
    figure = new_figure(7.2, f"What can go while most of the energy stays, sample {sample.index}, mean over kv heads")
    grid = figure.subplots(2, 2, sharex=True, sharey="row")
    for column, target in enumerate(BOTH):
        for percent, colour, marker in zip(KEEP_PERCENTS, (BLUE, VERMILION, GREEN), "os^", strict=True):
            room = potential(sample, target, percent)
            label = f"{percent:g} % of the energy kept"
            for axes, share in zip(grid[:, column], room, strict=True):
                axes.plot(mean_over(share.numpy(), 1), color=colour, marker=marker, label=label)
        grid[0, column].set_title(f"{target.capitalize()}s: dimensions")
        grid[1, column].set(title=f"{target.capitalize()}s: tokens", xlabel="layer")
    for axes, part in zip(grid[:, 0], ("dimensions", "tokens"), strict=True):
        share_axis(axes, f"share of the {part}")
    named_ticks(grid[0, 0].xaxis, layers, 16)
    grid[0, 0].set_xlim(-0.5, len(layers) - 0.5)
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure


def dimension_potential(sample: Sample, target: What) -> Floats:
    """Share of a head's dimensions that can go while 99 % of the energy stays: float64 ``[L, K]``."""
    dimensions: Floats = potential(sample, target, KEEP_PERCENT).dimensions.numpy()
    return dimensions


def _sparsity_lines(axes: Axes, sparsity: Floats, sample: Sample) -> None:
    thresholds = sample.summary.settings.sparsity_thresholds
    colours = line_colours(len(thresholds))
    for threshold, values, colour, marker in zip(thresholds, sparsity.T, colours, "os^Dvpx*", strict=False):
        axes.plot(values, color=colour, marker=marker, label=f"{100 * threshold:g} %")
    axes.set_xlim(-0.5, len(sparsity) - 0.5)
    from_zero(axes)
    axes.set_ylabel("share of the entries")


def _tenth_below(values: Floats) -> float:
    """The tenth at or below the smallest value, at most 0.9: where colours begin."""
    known = values[np.isfinite(values)]
    return min(float(np.floor(10 * known.min(initial=0.9)) / 10), 0.9)
