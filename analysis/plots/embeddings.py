"""Dimensions of keys and values: which are small or large, and whether the heads agree on it."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from kvcompress.analysis.metrics.of_sample.cache import BOTH, consistency
from kvcompress.analysis.plots.bins import Floats
from kvcompress.analysis.plots.panels import (
    colour_bar,
    from_zero,
    grid_image,
    named_ticks,
    share_axis,
    spread_norm,
    whole_ticks,
)
from kvcompress.analysis.plots.stored import floats, layer_numbers, mean_over
from kvcompress.analysis.plots.style import BLUE, ORANGE, new_figure, styled
from kvcompress.analysis.summary.reader import Sample
from kvcompress.analysis.summary.schema import TOKEN_SPARSITY_THRESHOLD

_DIMENSION_AXIS = "dimension of the head"


@styled
def embedding_consistency(sample: Sample) -> Figure:
    """Each dimension's sparsity (mean and range over all heads), and how alike the heads are in it."""
    figure = new_figure(
        6.6, f"Dimensions across all heads, sample {sample.index}: magnitude below {_percent()} of the root mean square"
    )
    grid = figure.subplots(2, 2, sharex="col", sharey="row")
    for column, target in enumerate(BOTH):
        sparsity = by_head(sample, target)  # [heads of all layers, D]
        _range(grid[0, column], sparsity)
        grid[0, column].set_title(f"{target.capitalize()}s: sparsity")
        alike: Floats = consistency(sample, target).numpy()
        grid[1, column].bar(range(len(alike)), np.nan_to_num(alike), color=ORANGE, width=1.0)
        grid[1, column].set(title=f"{target.capitalize()}s: consistency", xlabel=_DIMENSION_AXIS)
        whole_ticks(grid[1, column].xaxis)
        grid[1, column].set_xlim(-0.5, len(alike) - 0.5)
    from_zero(grid[0, 0] if grid[0, 0].dataLim.y1 > grid[0, 1].dataLim.y1 else grid[0, 1])
    grid[0, 0].set_ylabel("share of the tokens")
    share_axis(grid[1, 0], "1 - 2 × deviation between heads")
    grid[0, 1].legend(loc="upper right")
    return figure


@styled
def sparse_dense_patterns(sample: Sample) -> Figure:
    """Sparsity and energy of every dimension of every layer, mean over heads: sparse ones light, dense ones dark."""
    layers = layer_numbers(sample)
    figure = new_figure(
        float(np.clip(3.6 + 0.3 * len(layers), 4.6, 10.0)),
        f"Sparse and dense dimensions, sample {sample.index}, mean over kv heads",
    )
    grid = figure.subplots(2, 2, sharex="col", sharey=True)
    energies = [mean_over(floats(sample, f"kv.{target}_energy"), 1) for target in BOTH]
    for column, (target, energy) in enumerate(zip(BOTH, energies, strict=True)):
        sparsity = mean_over(floats(sample, f"kv.{target}_dimension_sparsity"), 1)
        top = grid_image(grid[0, column], sparsity, spread_norm(sparsity, 0.0))
        grid[0, column].set_title(f"{target.capitalize()}s: sparsity")
        colour_bar(top, grid[0, column], f"share below {_percent()}")
        bottom = grid_image(grid[1, column], energy, _energy_norm(energy))
        grid[1, column].set(title=f"{target.capitalize()}s: energy", xlabel=_DIMENSION_AXIS)
        colour_bar(bottom, grid[1, column], "mean square")
        whole_ticks(grid[1, column].xaxis)
    for row in range(2):
        named_ticks(grid[row, 0].yaxis, layers, 12)
        grid[row, 0].set_ylabel("layer")
    return figure


def by_head(sample: Sample, target: str) -> Floats:
    """Sparsity of each dimension in each head of all layers: float64 ``[L * K, D]``."""
    sparsity = floats(sample, f"kv.{target}_dimension_sparsity")
    return sparsity.reshape(-1, sparsity.shape[-1])


def _percent() -> str:
    return f"{100 * TOKEN_SPARSITY_THRESHOLD:g} %"


def _range(axes: Axes, sparsity: Floats) -> None:
    edges = np.arange(sparsity.shape[1] + 1) - 0.5
    lowest, highest = np.nan_to_num(sparsity).min(0), np.nan_to_num(sparsity).max(0)
    axes.stairs(highest, edges, baseline=lowest, fill=True, color=BLUE, alpha=0.25, label="range over heads")
    axes.stairs(np.nan_to_num(mean_over(sparsity, 0)), edges, color=BLUE, label="mean")


def _energy_norm(energy: Floats) -> Normalize:
    positive = energy[np.isfinite(energy) & (energy > 0)]
    if not len(positive) or positive.min() == positive.max():
        return Normalize(0, 1)
    return LogNorm(float(positive.min()), float(positive.max()))
