"""Tucker decompositions of keys and values, and how sensitive the predictions are to each layer's."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kvcompress.analysis.plots.bins import Floats
from kvcompress.analysis.plots.panels import colour_bar, from_zero, grid_image, named_ticks
from kvcompress.analysis.plots.problems import NothingToDrawError
from kvcompress.analysis.plots.results import Results, numbers, of_target
from kvcompress.analysis.plots.style import BLUE, GREEN, GREY, ORANGE, VERMILION, new_figure, styled
from kvcompress.analysis.plots.text import counted, printable

_TARGETS = ("keys", "values")
_MOST_WRITTEN = 16


@styled
def tucker_components(results: Results) -> Figure:
    """Core and factors of the first layer's keys, errors of all layers beside SVD of the same size, and the rank sweep.

    Args:
        results: ``tucker.json``.

    Raises:
        NothingToDrawError: it holds no layer.
    """
    if not results["layers"]:
        raise NothingToDrawError("tucker_components needs at least one layer; tucker.json has none")
    shown = results["layers"][0]
    ranks = " × ".join(map(str, shown["core_shape"]))
    figure = new_figure(
        9.6,
        f"Tucker decomposition of {printable(results['model']['name'], 40)}: {counted(results['tokens'], 'token')}, "
        f"core {ranks}",
    )
    panels = figure.subplot_mosaic(
        [["core", "token", "embedding"], ["error", "error", "sweep"]], height_ratios=[1, 1.1]
    )
    _components(figure, panels, shown)
    _errors(panels["error"], results)
    _sweep(panels["sweep"], results)
    return figure


@styled
def layer_sensitivity(results: Results) -> Figure:
    """What replacing one layer's cache by its low-rank form costs the predictions, layer by layer.

    Args:
        results: ``tucker.json``.

    Raises:
        NothingToDrawError: the sensitivity was not measured.
    """
    rows = results["sensitivity"]
    if not rows:
        raise NothingToDrawError("layer_sensitivity was not measured; run `kvcompress tucker` without --no-sensitivity")
    layers = [row["layer"] for row in rows]
    figure = new_figure(7.6, f"Sensitivity of {printable(results['model']['name'], 40)} to one layer in low rank")
    grid = figure.subplots(3, 1, sharex=True)
    for name, colour, marker in (("keys", BLUE, "o"), ("values", VERMILION, "s")):
        grid[0].plot(numbers([row[f"relative_error_{name}"] for row in rows]), color=colour, marker=marker, label=name)
    grid[0].plot(numbers([row["relative_error"] for row in rows]), color="black", linestyle="--", label="both")
    from_zero(grid[0])
    grid[0].set(ylabel="relative error")
    grid[0].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    _bars(grid[1], numbers([row["kl"] for row in rows]), GREEN)
    grid[1].set_ylabel("KL(full || changed)\n(nats per token)")
    _bars(grid[2], 100 * (1 - numbers([row["top1"] for row in rows])), ORANGE)
    grid[2].set_ylabel("likeliest token\nchanged (%)")
    grid[2].set_xlabel("layer")
    named_ticks(grid[2].xaxis, layers)
    return figure


def _bars(axes: Axes, values: Floats, colour: str) -> None:
    axes.bar(range(len(values)), np.nan_to_num(values), color=colour, width=0.75)
    axes.grid(visible=False, axis="x")
    from_zero(axes)
    if len(values) <= _MOST_WRITTEN:
        for place, value in enumerate(values):
            axes.annotate(f"{value:.2g}", (place, value), ha="center", va="bottom", fontsize=8)


def _components(figure: Figure, panels: dict[str, Axes], shown: dict[str, Any]) -> None:
    where = f"layer {shown['layer']}, {shown['target']}"
    core = np.sqrt((numbers(shown["core"]) ** 2).sum(0))  # over the head mode: [token rank, embedding rank]
    image = grid_image(panels["core"], core)
    panels["core"].set(title=f"Core ({where})", xlabel="embedding component", ylabel="token component")
    colour_bar(image, panels["core"], "norm over the head mode")
    for mode, rows in (("token", shown["token_rows"]), ("embedding", shown["embedding_rows"])):
        factor = numbers(shown["factors"][mode])
        most = float(np.abs(factor).max(initial=0.0)) or 1.0
        image = grid_image(panels[mode], factor, cmap="PuOr")
        image.set_clim(-most, most)
        named_ticks(panels[mode].yaxis, rows, 12)
        unit = "token position" if mode == "token" else "dimension of the head"
        panels[mode].set(title=f"{mode.capitalize()} factor", xlabel=f"{mode} component", ylabel=unit)
        colour_bar(image, panels[mode], "loading")


def _errors(axes: Axes, results: Results) -> None:
    for target, colour, marker in zip(_TARGETS, (BLUE, VERMILION), "os", strict=True):
        rows = of_target(results["layers"], target)
        axes.plot(
            numbers([row["relative_error"] for row in rows]), color=colour, marker=marker, label=f"{target}: Tucker"
        )
        axes.plot(
            numbers([row["svd_relative_error"] for row in rows]),
            color=colour,
            marker=marker,
            markerfacecolor="white",
            linestyle="--",
            label=f"{target}: SVD, same bytes",
        )
        named_ticks(axes.xaxis, [row["layer"] for row in rows])
    from_zero(axes)
    axes.set(xlabel="layer", ylabel="relative error", title="Error by layer")
    axes.legend(loc="best", ncols=2)


def _sweep(axes: Axes, results: Results) -> None:
    """Error over the fraction of bytes removed, a line per target: mean over layers."""
    for target, colour, marker in zip(_TARGETS, (BLUE, VERMILION), "os", strict=True):
        rows = of_target(results["rank_sweep"], target)
        fractions = sorted({row["fraction"] for row in rows})
        same = [[row for row in rows if row["fraction"] == fraction] for fraction in fractions]
        ratio = [float(np.mean([row["compression_ratio"] for row in group])) for group in same]
        error = [float(np.mean([row["relative_error"] for row in group])) for group in same]
        axes.plot(ratio, error, color=colour, marker=marker, label=target)
    axes.axvline(0, color=GREY, linewidth=0.8)
    from_zero(axes)
    axes.set(xlabel="fraction of the bytes removed", ylabel="relative error", title="Rank sweep, mean of layers")
    axes.legend(loc="best")
