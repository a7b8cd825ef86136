"""Similarity of tokens, heads and layers in the KV cache, and how much of it is redundant."""

from __future__ import annotations

from typing import Any

from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from kvcompress.analysis.plots.panels import colour_bar, grid_image, named_ticks, share_axis, write_values
from kvcompress.analysis.plots.problems import NothingToDrawError
from kvcompress.analysis.plots.results import Results, numbers, of_target
from kvcompress.analysis.plots.style import line_colours, new_figure, styled
from kvcompress.analysis.plots.text import counted

_TARGETS = ("keys", "values")
_MOST_WRITTEN = 10
_COSINE, _CKA = "cosine similarity", "linear CKA"


@styled
def token_similarity(results: Results, layer: int) -> Figure:
    """Cosine between the tokens' keys, and values, of one layer.

    Args:
        results: ``similarity.json``.
        layer: number of the layer in the model.

    Raises:
        ValueError: there is no such layer in it.
    """
    rows = _of_layer(results, layer)
    positions = results["token_positions"]
    figure = new_figure(5.0, f"Similarity of tokens in layer {layer}: {len(positions)} of {results['tokens']} tokens")
    grid = figure.subplots(1, len(rows), squeeze=False)[0]
    for axes, row in zip(grid, rows, strict=True):
        image = grid_image(axes, numbers(row["token_cosine"]), Normalize(-1, 1), "PuOr")
        axes.set_aspect("equal")
        named_ticks(axes.xaxis, positions, 8)
        named_ticks(axes.yaxis, positions, 8)
        mean = row["mean_token_cosine"]
        note = "" if mean is None else f", mean of all pairs {mean:.2f}"
        axes.set(title=f"{row['target'].capitalize()}{note}", xlabel="token position", ylabel="token position")
    colour_bar(image, list(grid), _COSINE)
    return figure


@styled
def head_similarity(results: Results, layer: int) -> Figure:
    """Cosine and CKA between the kv heads of one layer.

    Args:
        results: ``similarity.json``.
        layer: number of the layer in the model.

    Raises:
        ValueError: there is no such layer in it.
    """
    rows = _of_layer(results, layer)
    maps = [(row["target"], measure, row[name]) for row in rows for name, measure in _measures("head_")]
    return _matrices(maps, f"Similarity of the kv heads of layer {layer}", "kv head", None)


@styled
def between_layers(results: Results) -> Figure:
    """Cosine and CKA between the layers' keys, and values.

    Args:
        results: ``similarity.json``.
    """
    maps = [
        (target, measure, results["between_layers"][target][name])
        for target in _TARGETS
        for name, measure in _measures("")
    ]
    return _matrices(maps, "Similarity of the layers' keys and values", "layer", results["layer_indices"])


@styled
def redundancy(results: Results) -> Figure:
    """Share of the tokens that have a near twin, by layer and threshold.

    Args:
        results: ``similarity.json``.

    Raises:
        NothingToDrawError: it holds no layer.
    """
    if not results["layers"]:
        raise NothingToDrawError("redundancy needs at least one layer; similarity.json has none")
    figure = new_figure(4.2, f"Redundancy of tokens: nearest other token of {counted(results['tokens'], 'token')}")
    grid = figure.subplots(1, 2, sharey=True)
    for axes, target in zip(grid, _TARGETS, strict=True):
        rows = of_target(results["layers"], target)
        thresholds = [entry["threshold"] for entry in rows[0]["redundancy"]] if rows else []
        for place, (threshold, colour) in enumerate(zip(thresholds, line_colours(len(thresholds)), strict=True)):
            share = numbers([row["redundancy"][place]["share"] for row in rows])
            axes.plot(share, color=colour, marker="os^Dvpx*"[place % 8], label=f"above {threshold:g}")
        named_ticks(axes.xaxis, [row["layer"] for row in rows], 16)
        axes.set(title=target.capitalize(), xlabel="layer")
    share_axis(grid[0], "share of the tokens")
    grid[1].legend(title="cosine to the nearest", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _measures(prefix: str) -> list[tuple[str, str]]:
    return [(f"{prefix}cosine", _COSINE), (f"{prefix}cka", _CKA)]


def _of_layer(results: Results, layer: int) -> list[dict[str, Any]]:
    rows = [row for row in results["layers"] if row["layer"] == layer]
    if not rows:
        there = sorted({row["layer"] for row in results["layers"]})
        raise ValueError(f"layer must be one of {', '.join(map(str, there))}; got {layer}")
    return rows


def _matrices(maps: list[tuple[str, str, Any]], title: str, unit: str, names: list[int] | None) -> Figure:
    """Similarity matrices, those of keys above those of values; what could not be computed is left out."""
    known = [(target, measure, numbers(values)) for target, measure, values in maps if values is not None]
    if not known:
        raise NothingToDrawError(f"{title}: the shapes differ, nothing could be compared")
    rows = (len(known) + 1) // 2
    figure = new_figure(0.6 + 4.1 * rows, title)
    grid = figure.subplots(rows, min(len(known), 2), squeeze=False)
    for axes, (target, measure, values) in zip(grid.flat, known, strict=False):
        image = grid_image(
            axes, values, Normalize(-1 if measure == _COSINE else 0, 1), "PuOr" if measure == _COSINE else "cividis"
        )
        axes.set_aspect("equal")
        labels = list(range(len(values))) if names is None else names
        named_ticks(axes.xaxis, labels, 12)
        named_ticks(axes.yaxis, labels, 12)
        axes.set(title=f"{target.capitalize()}: {measure}", xlabel=unit, ylabel=unit)
        if len(values) <= _MOST_WRITTEN:
            write_values(axes, image, values)
        colour_bar(image, axes, measure)
    for axes in grid.flat[len(known) :]:
        axes.set_visible(False)
    return figure
