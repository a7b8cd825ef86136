"""What dropping layers, heads, dimensions or tokens of the cache costs the predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kvcompress.analysis.plots.panels import colour_bar, grid_image, named_ticks, write_values
from kvcompress.analysis.plots.problems import NothingToDrawError
from kvcompress.analysis.plots.results import Results, numbers
from kvcompress.analysis.plots.style import BLUE, GREEN, GREY, ORANGE, VERMILION, new_figure, styled
from kvcompress.analysis.plots.text import counted, printable

_ORDERS = {
    "least_important": ("least important first", BLUE, "o"),
    "random": ("random", GREY, "s"),
    "first": ("lowest index first", ORANGE, "^"),
    "last": ("highest index first", VERMILION, "v"),
}
_WHATS = ("layers", "heads", "dimensions", "tokens")
_MOST_WRITTEN = 16


@styled
def pruning_divergence(results: Results) -> Figure:
    """KL(full || pruned) over the share of units dropped, a panel per kind of unit and a line per order.

    Args:
        results: ``pruning.json``.

    Raises:
        NothingToDrawError: it holds no measured point.
    """
    return _curves(results, "kl", "KL(full || pruned)\n(nats per token)", lambda values: values, "Predictions")


@styled
def pruning_agreement(results: Results) -> Figure:
    """Share of likeliest tokens that stay the same, over the share of units dropped.

    Args:
        results: ``pruning.json``.

    Raises:
        NothingToDrawError: it holds no measured point.
    """
    return _curves(results, "top1", "same likeliest token (%)", lambda values: 100 * values, "Agreement")


@styled
def pruning_importance(results: Results) -> Figure:
    """Importance of layers, and of heads by layer, from the prompt alone.

    Args:
        results: ``pruning.json``.
    """
    layers = results["layer_indices"]
    heads = numbers(results["importance"]["heads"])
    figure = new_figure(
        float(np.clip(2.4 + 0.28 * len(layers), 4.0, 9.0)), f"Importance of layers and heads, {_setting(results)}"
    )
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1.4])
    left.barh(range(len(layers)), np.nan_to_num(numbers(results["importance"]["layers"])), color=GREEN)
    left.grid(visible=False, axis="y")
    left.set(title="Layers", xlabel="attention × norm of the value", ylabel="layer")
    image = grid_image(right, heads)
    named_ticks(right.xaxis, range(heads.shape[1]), 16)
    right.set(title="KV heads", xlabel="kv head")
    if len(layers) <= _MOST_WRITTEN and heads.shape[1] <= _MOST_WRITTEN:
        write_values(right, image, heads, ".3g")
    named_ticks(left.yaxis, layers)
    left.set_ylim(len(layers) - 0.5, -0.5)
    colour_bar(image, right, printable(results["importance"]["heads_unit"], 60))
    return figure


def curve(results: Results, what: str, order: str, measure: str) -> tuple[list[float], list[float]]:
    """Shares dropped, ascending, and the measure at each, NaN where it was not finite; random orders as their mean.

    Args:
        results: ``pruning.json``.
        what: kind of unit.
        order: which units go first.
        measure: ``"kl"`` or ``"top1"``.
    """
    points = [point for point in results["points"] if point["what"] == what and point["order"] == order]
    by_ratio: dict[float, list[float]] = {}
    for point in points:
        by_ratio.setdefault(point["dropped"] / point["units"], []).append(float(numbers(point[measure])))
    ratios = sorted(by_ratio)
    return ratios, [float(np.mean(by_ratio[ratio])) for ratio in ratios]


def _setting(results: Results) -> str:
    return f"{printable(results['model']['name'], 40)}, prompt of {counted(results['context'], 'token')}"


def _curves(results: Results, measure: str, unit: str, scaled: Callable[[Any], Any], title: str) -> Figure:
    whats = [what for what in _WHATS if any(point["what"] == what for point in results["points"])]
    if not whats:
        raise NothingToDrawError("pruning curves need measured points; pruning.json has none")
    rows = (len(whats) + 1) // 2
    figure = new_figure(
        1.1 + 2.9 * rows, f"{title} after pruning, {_setting(results)}, {counted(results['steps'], 'step')} measured"
    )
    grid = figure.subplots(rows, min(len(whats), 2), squeeze=False, sharey=measure == "top1")
    for axes, what in zip(grid.flat, whats, strict=False):
        _panel(axes, results, what, measure, scaled)
        axes.set(title=f"{what.capitalize()}", xlabel=f"share of the {what} dropped", ylabel=unit)
        axes.set_ylim(bottom=0, top=102 if measure == "top1" else None)
    for axes in grid.flat[len(whats) :]:
        axes.set_visible(False)
    handles = {str(line.get_label()): line for axes in grid.flat for line in axes.get_lines()}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4)
    return figure


def _panel(axes: Axes, results: Results, what: str, measure: str, scaled: Callable[[Any], Any]) -> None:
    for order, (name, colour, marker) in _ORDERS.items():
        ratios, values = curve(results, what, order, measure)
        if ratios:
            axes.plot(ratios, scaled(np.array(values)), color=colour, marker=marker, label=name)
    axes.set_xlim(0, 1)
