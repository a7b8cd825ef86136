"""Attention as a surface to turn around, in plotly."""

from __future__ import annotations

from html import escape
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from kvcompress.analysis.plots.attention_map import attention_map
from kvcompress.analysis.plots.bins import Floats, Whole, rows_on_common_edges
from kvcompress.analysis.plots.plotly_parts import KEYS, QUERIES, colour_axis, colour_limits, logarithm_of
from kvcompress.analysis.plots.problems import checked_head, checked_step, layer_place
from kvcompress.analysis.plots.stored import event_name, event_tokens, floats, head_name, mean_over
from kvcompress.analysis.summary.reader import Sample

MOST_ROWS: Final = 128


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
        rows = QUERIES
    x, z = _two_at_least(x, z, axis=1)
    y, z = _two_at_least(y, z, axis=0)
    colours = colour_limits([z])
    z = np.maximum(z, 10 ** colours["cmin"])  # as good as none; NaN stays
    hover = "key %{x:.0f}<br>row %{y:.0f}<br>probability %{z:.3g}<extra></extra>"
    figure = go.Figure(
        go.Surface(x=x, y=y, z=z, surfacecolor=logarithm_of(z), coloraxis="coloraxis", hovertemplate=hover)
    )
    name = f"Layer {layer}, {event_name(sample, step)}, {head_name(sample, head)}"
    figure.update_layout(
        title={"text": escape(name), "x": 0.02},
        scene={
            "xaxis": {"title": KEYS},
            "yaxis": {"title": rows},
            "zaxis": {"title": "attention probability per key token", "type": "log", "exponentformat": "power"},
        },
        coloraxis=colour_axis(colours),
        height=760,
        updatemenus=[_scale_menu()],
    )
    return figure


def _rows_up_to(sample: Sample, layer: int, step: int, head: int | None) -> tuple[Floats, Floats, Floats]:
    """Keys, steps and probabilities of the steps up to one."""
    steps = np.unique(np.linspace(0, step, min(step + 1, MOST_ROWS)).round().astype(np.int64))
    mass = floats(sample, "attention.position_mass", slice(None), layer_place(sample, layer))[steps]  # [n, H, bins]
    chosen = mean_over(mass, 1) if head is None else mass[:, head]
    values, edges = rows_on_common_edges(chosen, event_tokens(sample)[steps])
    return _middle(edges), steps.astype(np.float64), values


def _middle(edges: Whole) -> Floats:
    """The middle position of each range; the position itself where a range holds one."""
    return (edges[:-1] + edges[1:] - 1) / 2


def _two_at_least(places: Floats, z: Floats, axis: int) -> tuple[Floats, Floats]:
    """A single place becomes a strip of width 1: a surface has no extent otherwise."""
    if len(places) > 1:
        return places, z
    return places[0] + np.array([-0.5, 0.5]), np.repeat(z, 2, axis=axis)


def _scale_menu() -> dict[str, Any]:
    buttons = [
        {"label": f"{kind} height", "method": "relayout", "args": [{"scene.zaxis.type": short}]}
        for kind, short in (("logarithmic", "log"), ("linear", "linear"))
    ]
    return {"type": "buttons", "direction": "right", "x": 0, "xanchor": "left", "y": 1.05, "buttons": buttons}
