"""Attention as maps: of one layer, step and head; of all layers; of all heads."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from kvcompress.analysis.plots.attention_map import AttentionMap, attention_map
from kvcompress.analysis.plots.bins import per_token
from kvcompress.analysis.plots.panels import (
    PROBABILITY,
    PROBABILITY_OR_BLANK,
    above_scale,
    colour_bar,
    colour_map,
    named_ticks,
    plain_numbers,
    probability_mesh,
    probability_norm,
    whole_ticks,
)
from kvcompress.analysis.plots.problems import checked_head, checked_step, layer_place
from kvcompress.analysis.plots.stored import event_name, event_tokens, floats, head_name, layer_numbers, mean_over
from kvcompress.analysis.plots.style import BLUE, VERMILION, new_figure, styled
from kvcompress.analysis.summary.reader import Sample

MOST_PANELS = 64
_KEY_AXIS, _QUERY_AXIS = "key position (token)", "query position (token)"


@styled
def attention_heatmap(sample: Sample, layer: int, step: int, head: int | None = None) -> Figure:
    """What the queries of one step attend to, in one layer and head.

    A step with several queries is a map of queries and keys; one with a single query is a profile over the keys, with
    all heads below it.

    Args:
        sample: what was captured.
        layer: number of the layer in the model.
        step: number of the event.
        head: number of the query head; None: mean over heads.

    Raises:
        ValueError: there is no such layer, step or head.
    """
    shown = attention_map(sample, layer, step, head)
    title = f"Attention of layer {layer}, {event_name(sample, step)}, {shown.heads}, {shown.origin}"
    if shown.single:
        return _single_query(sample, shown, layer, step, head, title)
    figure = new_figure(7.2, title)
    axes = figure.subplots()
    mesh = _draw(axes, shown, probability_norm(shown.values))
    axes.set_box_aspect(1)
    axes.set(xlabel=_KEY_AXIS, ylabel=_QUERY_AXIS)
    colour_bar(mesh, axes, PROBABILITY_OR_BLANK)
    return figure


@styled
def step_heatmap(sample: Sample, step: int, head: int | None = None) -> Figure:
    """What one step attends to in every layer, over position bins.

    Raises:
        ValueError: there is no such step or head.
    """
    step, head = checked_step(sample, step), checked_head(sample, head)
    mass = floats(sample, "attention.position_mass", step)  # [L, H, bins]
    values, edges = per_token(mean_over(mass, 1) if head is None else mass[:, head], int(event_tokens(sample)[step]))
    layers = layer_numbers(sample)
    title = f"Attention of every layer, {event_name(sample, step)}, {head_name(sample, head)}"
    figure = new_figure(min(2.2 + 0.22 * len(layers), 9.0), title)
    axes = figure.subplots()
    mesh = probability_mesh(axes, values, edges, np.arange(len(layers) + 1) - 0.5, probability_norm(values))
    named_ticks(axes.yaxis, layers)
    axes.set(xlabel=_KEY_AXIS, ylabel="layer")
    colour_bar(mesh, axes, PROBABILITY_OR_BLANK)
    return figure


@styled
def layer_comparison(sample: Sample, step: int = 0, head: int | None = None) -> Figure:
    """The same step in every layer, side by side, in the same colours.

    Raises:
        ValueError: there is no such step or head.
    """
    layers = _some(layer_numbers(sample))
    maps = [attention_map(sample, layer, step, head) for layer in layers]
    note = (
        f", {len(layers)} of {sample.summary.model.layers} layers" if len(layers) < sample.summary.model.layers else ""
    )
    title = f"Attention by layer, {event_name(sample, step)}, {maps[0].heads}, {maps[0].origin}{note}"
    return _panels(maps, [f"layer {layer}" for layer in layers], title)


@styled
def head_comparison(sample: Sample, layer: int, step: int = 0) -> Figure:
    """The same layer and step in every query head, side by side, in the same colours.

    Raises:
        ValueError: there is no such layer or step.
    """
    count = sample.summary.model.query_heads
    heads = _some(list(range(count)))
    maps = [attention_map(sample, layer, step, head) for head in heads]
    note = f", {len(heads)} of {count} heads" if count > len(heads) else ""
    title = f"Attention by head, layer {layer}, {event_name(sample, step)}, {maps[0].origin}{note}"
    return _panels(maps, [f"head {head}" for head in heads], title)


def _some(numbers: Sequence[int]) -> list[int]:
    """All numbers, or as many as panels are legible, evenly spaced, the first and last among them."""
    if len(numbers) <= MOST_PANELS:
        return list(numbers)
    return [numbers[round(place)] for place in np.linspace(0, len(numbers) - 1, MOST_PANELS)]


def _draw(axes: Axes, shown: AttentionMap, norm: Normalize) -> ScalarMappable:
    mesh = probability_mesh(axes, shown.values, shown.key_edges, shown.query_edges, norm)
    whole_ticks(axes.xaxis)
    whole_ticks(axes.yaxis)
    return mesh


def _panels(maps: Sequence[AttentionMap], names: Sequence[str], title: str) -> Figure:
    columns = _columns(len(maps))
    rows = ceil(len(maps) / columns)
    single = maps[0].single
    width = 7.3 / columns
    figure = new_figure(0.9 + rows * (max(1.5, 0.5 * width) if single else min(width, 5.5) + 0.25), title)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    norm = probability_norm(*(shown.values for shown in maps))
    for axes, shown, name in zip(grid.flat, maps, names, strict=False):
        if single:
            axes.stairs(shown.values[0], shown.key_edges, fill=True, color=BLUE)
            axes.set_yscale("symlog", linthresh=1e-3)
            axes.set_ylim(0, 1)
            plain_numbers(axes.yaxis)
        else:
            mesh = probability_mesh(axes, shown.values, shown.key_edges, shown.query_edges, norm)
            axes.set_box_aspect(1)
        axes.set_title(name, fontsize=9)
        whole_ticks(axes.xaxis, 4 if columns <= 4 else 2)
        axes.tick_params(labelsize=7.5)
    for axes in grid.flat[len(maps) :]:
        axes.set_visible(False)
    if single:
        figure.supylabel(PROBABILITY, fontsize=9)
    else:
        grid[0, 0].set_ylim(maps[0].query_edges[-1], maps[0].query_edges[0])  # every panel turned the shared axis
        whole_ticks(grid[0, 0].yaxis, 5)
        figure.supylabel(_QUERY_AXIS, fontsize=9)
        colour_bar(mesh, list(grid.flat), PROBABILITY_OR_BLANK)
    figure.supxlabel(_KEY_AXIS, fontsize=9)
    return figure


def _columns(panels: int) -> int:
    if panels <= 4:
        return panels
    return 3 if panels <= 6 else 4 if panels <= 16 else 8


def _single_query(sample: Sample, shown: AttentionMap, layer: int, step: int, head: int | None, title: str) -> Figure:
    mass = floats(sample, "attention.position_mass", step, layer_place(sample, layer))  # [H, bins]
    by_head, edges = per_token(mass, int(event_tokens(sample)[step]))
    figure = new_figure(2.6 + min(1.6 + 0.2 * len(by_head), 5.5), title)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2.0, min(1.6 + 0.2 * len(by_head), 5.5)])
    above.stairs(shown.values[0], shown.key_edges, fill=True, color=BLUE)
    above.set_ylim(bottom=0)
    above.set_xlim(-0.01 * edges[-1], 1.01 * edges[-1])  # a bar at an end is seen beside the axis
    above.set(ylabel=PROBABILITY, title=shown.heads)
    norm = probability_norm(by_head)
    mesh = below.pcolormesh(
        edges,
        np.arange(len(by_head) + 1) - 0.5,
        above_scale(by_head, norm),
        norm=norm,
        cmap=colour_map("viridis"),
    )
    below.invert_yaxis()
    below.grid(visible=False)
    named_ticks(below.yaxis, range(len(by_head)))
    if head is not None:
        below.axhspan(head - 0.5, head + 0.5, fill=False, edgecolor=VERMILION, linewidth=2)
    below.set(xlabel=_KEY_AXIS, ylabel="query head", title="every head, over position bins")
    whole_ticks(below.xaxis)
    colour_bar(mesh, below, PROBABILITY_OR_BLANK)
    return figure
