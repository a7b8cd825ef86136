"""The interactive pages of a sample: their names, files, and what makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kvcompress.analysis.plots.catalogue import Place
from kvcompress.analysis.plots.interactive import interactive_attention, layers_with_pages
from kvcompress.analysis.plots.stored import layer_numbers
from kvcompress.analysis.plots.surface import surface
from kvcompress.analysis.summary.reader import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class InteractiveView:
    """An interactive page of a layer.

    Attributes:
        file: its name below the output folder, with ``{sample}`` and ``{layer}``.
        draw: makes the plotly figure.
        layers: which layers a sample has pages of, unless one is asked for.
        always: whether it belongs to the comprehensive report, or is made on request.
    """

    file: str
    draw: Callable[[Sample, Place], Any]
    layers: Callable[[Sample], list[int]]
    always: bool


INTERACTIVE_VIEWS: Final[Mapping[str, InteractiveView]] = {
    "interactive_attention": InteractiveView(
        file="plots/interactive_attention_layer_{layer}_sample_{sample}.html",
        draw=lambda sample, at: interactive_attention(sample, at.layer, at.step, at.head),
        layers=layers_with_pages,
        always=True,
    ),
    "attention_surface": InteractiveView(
        file="plots/attention_surface_layer_{layer}_sample_{sample}.html",
        draw=lambda sample, at: surface(sample, at.layer, at.step, at.head),
        layers=layer_numbers,
        always=False,
    ),
}
