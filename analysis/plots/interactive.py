"""Interactive views in plotly: attention with controls for layer, step and head, and as a surface."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from html import escape
from itertools import product
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from kvcompress.analysis.plots.attention_map import AttentionMap, attention_map
from kvcompress.analysis.plots.bins import Floats, Whole, rows_on_common_edges
from kvcompress.analysis.plots.problems import checked_head, checked_step, layer_place
from kvcompress.analysis.plots.stored import event_name, event_tokens, floats, head_name, layer_numbers, mean_over
from kvcompress.analysis.summary.reader import Sample

MOST_STEPS: Final = 40
MOST_ROWS: Final = 128
MOST_CELLS: Final = 600_000  # about 10 MB of HTML
_DECADES: Final = 4
_KEYS, _QUERIES = "key position (token)", "query position (token)"
_BAR: Final = {
    "title": {"text": "probability<br>per key token"},
    "tickvals": list(range(-12, 1)),
    "ticktext": [f"1e{power}" if power < -3 else f"{10.0**power:g}" for power in range(-12, 1)],
}


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
    the one layer alone.

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
    colours = _limits([shown.values for shown in maps.values()])
    traces = [_trace(maps, choice, of, by, colours["cmin"]) for of in choice.layers for by in choice.heads]
    figure = go.Figure(traces)
    figure.update_layout(
        title={"text": escape(f"Attention in {sample.summary.model.name}, sample {sample.index}"), "x": 0.02},
        xaxis={"title": _KEYS, "showgrid": False},
        yaxis_showgrid=False,
        yaxis_autorange="reversed",
        **{f"yaxis_{name.replace('.', '_')}": value for name, value in _query_axis(maps[layer, step, head]).items()},
        coloraxis={"colorscale": "Viridis", "colorbar": _BAR, **colours},
        plot_bgcolor="#ececec",
        height=720,
        margin={"t": 110, "b": 130},
        updatemenus=_menus(choice),
        sliders=[_slider(sample, maps, choice, colours["cmin"])],
    )
    return figure


def surface(sample: Sample, layer: int, step: int, head: int | None = None) -> go.Figure:
    """Attention as a surface over keys and queries.

    A step with several queries shows them; one with a single query shows all steps up to it, as far as they fit.

    Args:
        sample: what was captured.
        layer: number of the layer in the model.
        step: number of the event.
        head: query head; None: mean over heads.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        ValueError: there is no such layer, step or head.
    """
    layer_place(sample, layer)
    shown = attention_map(sample, layer, checked_step(sample, step), checked_head(sample, head))
    if shown.single:
        x, y, z = _rows_up_to(sample, layer, step, head)
        rows = "step (event)"
    else:
        x, y = _middle(shown.key_edges), _middle(shown.query_edges)
        future = shown.key_edges[:-1] >= shown.query_edges[1:, None]
        z = np.where(future & (shown.values == 0), np.nan, shown.values)
        rows = _QUERIES
    colours = _limits([z])
    z = np.maximum(z, 10 ** colours["cmin"])  # as good as none; NaN stays
    hover = "key %{x:.0f}<br>row %{y:.0f}<br>probability %{z:.3g}<extra></extra>"
    figure = go.Figure(
        go.Surface(x=x, y=y, z=z, surfacecolor=_logarithm(z), coloraxis="coloraxis", hovertemplate=hover)
    )
    name = f"Layer {layer}, {event_name(sample, step)}, {head_name(sample, head)}"
    figure.update_layout(
        title={"text": escape(name), "x": 0.02},
        scene={
            "xaxis": {"title": _KEYS},
            "yaxis": {"title": rows},
            "zaxis": {"title": "attention probability per key token", "type": "log", "exponentformat": "power"},
        },
        coloraxis={"colorscale": "Viridis", "colorbar": _BAR, **colours},
        height=760,
        updatemenus=[_scale_menu()],
    )
    return figure


def _choice(sample: Sample, layer: int, step: int, head: int | None) -> Choice:
    layer_place(sample, layer)
    step, head = checked_step(sample, step), checked_head(sample, head)
    spaced = {round(place) for place in np.linspace(0, sample.events - 1, min(sample.events, MOST_STEPS))}
    steps = sorted(spaced | {step})
    heads: list[int | None] = [None, *range(sample.summary.model.query_heads)]
    cells = sum(attention_map(sample, layer, at).values.size for at in steps) * len(heads)
    layers = layer_numbers(sample) if cells * sample.summary.model.layers <= MOST_CELLS else [layer]
    return Choice(layers=layers, steps=steps, heads=heads, layer=layer, step=step, head=head)


def _trace(maps: Maps, choice: Choice, layer: int, head: int | None, least: float) -> go.Heatmap:
    """One layer and head at the step shown first. The head's menu turns ``visible``, the layer's ``opacity``."""
    name = f"layer {layer}, {'mean over heads' if head is None else f'head {head}'}"
    shown = maps[layer, choice.step, head]
    here = layer == choice.layer
    return go.Heatmap(
        z=_logarithm(shown.values, least).astype(np.float32),
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
            "z": [_packed(_logarithm(one.values, least)) for one in shown],
            "customdata": [_packed(one.values) for one in shown],
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
    return {"title.text": _QUERIES, "showticklabels": True}


def _scale_menu() -> dict[str, Any]:
    buttons = [
        {"label": f"{kind} height", "method": "relayout", "args": [{"scene.zaxis.type": short}]}
        for kind, short in (("logarithmic", "log"), ("linear", "linear"))
    ]
    return {"type": "buttons", "direction": "right", "x": 0, "xanchor": "left", "y": 1.05, "buttons": buttons}


def _rows_up_to(sample: Sample, layer: int, step: int, head: int | None) -> tuple[Floats, Floats, Floats]:
    """Keys, steps and probabilities of the steps up to one; a single step becomes a ribbon of width 1."""
    steps = np.unique(np.linspace(0, step, min(step + 1, MOST_ROWS)).round().astype(np.int64))
    mass = floats(sample, "attention.position_mass", slice(None), layer_place(sample, layer))[steps]  # [n, H, bins]
    chosen = mean_over(mass, 1) if head is None else mass[:, head]
    values, edges = rows_on_common_edges(chosen, event_tokens(sample)[steps])
    if len(steps) == 1:
        return _middle(edges), np.array([step - 0.5, step + 0.5]), np.repeat(values, 2, axis=0)
    return _middle(edges), steps.astype(np.float64), values


def _middle(edges: Whole) -> Floats:
    """The middle position of each range; the position itself where a range holds one."""
    return (edges[:-1] + edges[1:] - 1) / 2


def _logarithm(values: Floats, least: float = -np.inf) -> Floats:
    """Decimal logarithm; NaN where there is no attention, or less than the colours show."""
    logarithm = np.log10(values, out=np.full(values.shape, np.nan), where=values > 0)
    return np.where(logarithm >= least, logarithm, np.nan)


def _packed(values: Floats) -> dict[str, str]:
    """An array as plotly.js reads it, 4 bytes a number: far quicker than lists, and smaller."""
    data = np.ascontiguousarray(values, dtype="<f4")
    return {
        "dtype": "f4",
        "bdata": b64encode(data.tobytes()).decode("ascii"),
        "shape": ", ".join(map(str, data.shape)),
    }


def _limits(maps: list[Floats]) -> dict[str, float]:
    """Colours from the largest probability down over four decades at most."""
    known = np.concatenate([logarithm[np.isfinite(logarithm)] for logarithm in map(_logarithm, maps)])
    if not len(known):
        return {"cmin": -_DECADES, "cmax": 0}
    most = float(known.max())
    return {"cmin": max(float(known.min()), most - _DECADES) - 1e-9, "cmax": most}
