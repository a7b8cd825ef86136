"""Attention in plotly, with controls for layer, step and head."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from itertools import product
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from kvcompress.analysis.plots.attention_map import AttentionMap, attention_map
from kvcompress.analysis.plots.plotly_parts import KEYS, QUERIES, colour_axis, colour_limits, logarithm_of, packed
from kvcompress.analysis.plots.problems import checked_head, checked_step, layer_place
from kvcompress.analysis.plots.stored import event_name, layer_numbers
from kvcompress.analysis.summary.reader import Sample

MOST_STEPS: Final = 40
MOST_CELLS: Final = 600_000  # about 7 MB of HTML, beside plotly itself


Maps = dict[tuple[int, int, int | None], AttentionMap]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What an interactive view can show, and what it shows first."""

    layers: list[int]
    steps: list[int]
    heads: list[int | None]
    layer: int
    step: int
    head: int | None


def interactive_attention(sample: Sample, layer: int, step: int = 0, head: int | None = None) -> go.Figure:
    """Attention as a map of queries and keys, with controls for layer, step and head that do not reset each other.

    A long generation is shown at some 40 of its steps. Where all layers would be too much for one file, the view is of
    the one layer alone, and where that is too much, of fewer steps.

    Args:
        sample: what was captured.
        layer: number of the layer (in the model) shown first.
        step: number of the event shown first.
        head: query head shown first; None: mean over heads.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        ValueError: there is no such layer, step or head.
    """
    choice = _choice(sample, layer, step, head)
    maps = {key: attention_map(sample, *key) for key in product(choice.layers, choice.steps, choice.heads)}
    colours = colour_limits([shown.values for shown in maps.values()])
    traces = [_trace(maps, choice, of, by, colours["cmin"]) for of in choice.layers for by in choice.heads]
    figure = go.Figure(traces)
    figure.update_layout(
        title={"text": escape(f"Attention in {sample.summary.model.name}, sample {sample.index}"), "x": 0.02},
        xaxis={"title": KEYS, "showgrid": False},
        yaxis_showgrid=False,
        yaxis_autorange="reversed",
        **{f"yaxis_{name.replace('.', '_')}": value for name, value in _query_axis(maps[layer, step, head]).items()},
        coloraxis=colour_axis(colours),
        plot_bgcolor="#ececec",
        height=720,
        margin={"t": 110, "b": 130},
        updatemenus=_menus(choice),
        sliders=[_slider(sample, maps, choice, colours["cmin"])],
    )
    return figure


def layers_with_pages(sample: Sample) -> list[int]:
    """Layers that need a view of their own: the first alone where its view has all of them."""
    layers = layer_numbers(sample)
    return layers[:1] if _choice(sample, layers[0], 0, None).layers == layers else layers


def _choice(sample: Sample, layer: int, step: int, head: int | None) -> Choice:
    layer_place(sample, layer)
    step, head = checked_step(sample, step), checked_head(sample, head)
    heads: list[int | None] = [None, *range(sample.summary.model.query_heads)]
    sizes = {at: _cells(sample, layer, at, heads) for at in _spaced(sample.events, MOST_STEPS, step)}
    layers = layer_numbers(sample)
    if sum(sizes.values()) * len(layers) > MOST_CELLS:
        layers = [layer]
    affordable = max(1, MOST_CELLS // (len(layers) * max(sizes.values())))
    steps = list(sizes) if sum(sizes.values()) <= MOST_CELLS else _spaced(sample.events, affordable, step)
    return Choice(layers=layers, steps=steps, heads=heads, layer=layer, step=step, head=head)


def _spaced(events: int, most: int, step: int) -> list[int]:
    """As many steps, evenly spaced, and the one that is shown first."""
    return sorted({round(place) for place in np.linspace(0, events - 1, min(events, most))} | {step})


def _cells(sample: Sample, layer: int, step: int, heads: list[int | None]) -> int:
    """Values of a step in one layer: every head's map has as many as the first one's."""
    mean, one = (attention_map(sample, layer, step, head).values.size for head in heads[:2])
    return mean + (len(heads) - 1) * one


def _trace(maps: Maps, choice: Choice, layer: int, head: int | None, least: float) -> go.Heatmap:
    """One layer and head at the step shown first. The head's menu turns ``visible``, the layer's ``opacity``."""
    name = f"layer {layer}, {'mean over heads' if head is None else f'head {head}'}"
    shown = maps[layer, choice.step, head]
    here = layer == choice.layer
    return go.Heatmap(
        z=logarithm_of(shown.values, least).astype(np.float32),
        customdata=shown.values.astype(np.float32),
        x=shown.key_edges.tolist(),
        y=shown.query_edges.tolist(),
        coloraxis="coloraxis",
        name=name,
        visible=head == choice.head,
        opacity=1 if here else 0,
        hoverinfo="all" if here else "skip",
        hovertemplate="key %{x:.0f}<br>query %{y:.0f}<br>probability %{customdata:.3g}<extra>" + name + "</extra>",
    )


def _menus(choice: Choice) -> list[dict[str, Any]]:
    traces = [(layer, head) for layer in choice.layers for head in choice.heads]
    heads = [
        {
            "label": "mean over heads" if head is None else f"head {head}",
            "method": "restyle",
            "args": [{"visible": [of == head for _, of in traces]}],
        }
        for head in choice.heads
    ]
    layers = [
        {
            "label": f"layer {layer}",
            "method": "restyle",
            "args": [
                {
                    "opacity": [int(of == layer) for of, _ in traces],
                    "hoverinfo": ["all" if of == layer else "skip" for of, _ in traces],
                }
            ],
        }
        for layer in choice.layers
    ]
    place = {"y": 1.02, "yanchor": "bottom", "xanchor": "left", "direction": "down", "showactive": True}
    return [
        {**place, "x": 0.0, "buttons": layers, "active": choice.layers.index(choice.layer)},
        {**place, "x": 0.16, "buttons": heads, "active": choice.heads.index(choice.head)},
    ]


def _slider(sample: Sample, maps: Maps, choice: Choice, least: float) -> dict[str, Any]:
    steps = []
    for step in choice.steps:
        shown = [maps[layer, step, head] for layer in choice.layers for head in choice.heads]
        change = {
            "z": [packed(logarithm_of(one.values, least)) for one in shown],
            "customdata": [packed(one.values) for one in shown],
            "x": [one.key_edges.tolist() for one in shown],
            "y": [one.query_edges.tolist() for one in shown],
        }
        axis = {f"yaxis.{name}": value for name, value in _query_axis(shown[0]).items()}
        steps.append({"label": event_name(sample, step), "method": "update", "args": [change, axis]})
    return {
        "active": choice.steps.index(choice.step),
        "steps": steps,
        "currentvalue": {"prefix": "", "font": {"color": "#2a3f5f", "size": 14}},
        "pad": {"t": 50},
        "ticklen": 3,
        "font": {"color": "rgba(0,0,0,0)"},  # labels of many steps overlap; the current one is written above
    }


def _query_axis(shown: AttentionMap) -> dict[str, Any]:
    """The axis of queries; a single query has no ticks but its position in the title."""
    if shown.single:
        return {"title.text": f"query at position {shown.query_edges[0]}", "showticklabels": False}
    return {"title.text": QUERIES, "showticklabels": True}
