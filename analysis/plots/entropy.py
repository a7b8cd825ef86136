"""How evenly attention is spread: entropy and variance, by layer, head and step."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from kvcompress.analysis.metrics.of_sample.events import mean_over_events
from kvcompress.analysis.plots.bins import Floats
from kvcompress.analysis.plots.panels import (
    colour_bar,
    from_zero,
    grid_image,
    named_ticks,
    spread_norm,
    step_limits,
    write_values,
)
from kvcompress.analysis.plots.problems import layer_place
from kvcompress.analysis.plots.stored import STEP_AXIS, floats, layer_numbers, mean_over, some_event
from kvcompress.analysis.plots.style import new_figure, shades, styled
from kvcompress.analysis.summary.reader import Sample

_MOST_NAMED = 10
_MOST_WRITTEN = 10


@styled
def entropy_evolution(sample: Sample) -> Figure:
    """Entropy of every layer over the steps, in nats and as a share of the largest possible; mean over heads.

    Raises:
        NothingToDrawError: the sample has no event.
    """
    some_event(sample, "attention_entropy_evolution")
    figure = new_figure(6.4, f"Attention entropy over the steps of sample {sample.index}, mean over heads")
    grid = figure.subplots(2, 1, sharex=True)
    names = [f"layer {layer}" for layer in layer_numbers(sample)]
    _lines(grid[0], mean_over(floats(sample, "attention.entropy"), 2), names, "layer")
    _lines(grid[1], mean_over(floats(sample, "attention.entropy_normalised"), 2), names, "layer")
    grid[0].set(ylabel="entropy (nats)")
    from_zero(grid[0])
    grid[1].set(ylabel="entropy / ln(keys seen)", ylim=(0, 1.02), xlabel=STEP_AXIS)
    step_limits(grid[1], sample.events)
    return figure


@styled
def entropy_variance(sample: Sample, layer: int) -> Figure:
    """Entropy and variance of a layer's heads over the steps, and their mean.

    Raises:
        ValueError: there is no such layer, or no event.
    """
    place = layer_place(sample, layer)
    some_event(sample, "entropy_variance")
    figure = new_figure(6.4, f"Entropy and variance of the attention, layer {layer}, sample {sample.index}")
    grid = figure.subplots(2, 1, sharex=True)
    names = [f"head {head}" for head in range(sample.summary.model.query_heads)]
    for axes, name in zip(grid, ("attention.entropy", "attention.variance"), strict=True):
        values = floats(sample, name, slice(None), place)
        _lines(axes, values, names, "head", mean=mean_over(values, 1))
        from_zero(axes)
    grid[0].set(ylabel="entropy (nats)")
    grid[1].set(ylabel="variance of the probabilities", xlabel=STEP_AXIS)
    grid[1].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    step_limits(grid[1], sample.events)
    return figure


@styled
def layer_head_analysis(sample: Sample) -> Figure:
    """Entropy, largest probability, and mass on first and recent tokens of every layer and head; mean over queries.

    Raises:
        NothingToDrawError: the sample has no event.
    """
    some_event(sample, "layer_head_analysis")
    settings = sample.summary.settings
    maps = (
        ("attention.entropy_normalised", "Entropy", "share of ln(keys seen)"),
        ("attention.maximum", "Largest probability of a query", "probability"),
        ("attention.sink_mass", f"Mass on the first {settings.sink_tokens} tokens", "share of the mass"),
        ("attention.recent_mass", f"Mass less than {settings.recent_tokens} tokens away", "share of the mass"),
    )
    layers = layer_numbers(sample)
    figure = new_figure(
        min(3.6 + 0.3 * len(layers), 10.5),
        f"Layers and heads of sample {sample.index}, mean over queries",
    )
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, (name, title, unit) in zip(grid.flat, maps, strict=True):
        values: Floats = mean_over_events(sample, name).numpy()
        image = grid_image(axes, values, spread_norm(values))
        if max(values.shape) <= _MOST_WRITTEN:
            write_values(axes, image, values)
        named_ticks(axes.yaxis, layers, 16)
        named_ticks(axes.xaxis, range(values.shape[1]), 16)
        axes.set_title(title)
        colour_bar(image, axes, unit)
    for axes in grid[:, 0]:
        axes.set_ylabel("layer")
    for axes in grid[1]:
        axes.set_xlabel("query head")
    return figure


def _lines(axes: Axes, values: Floats, names: list[str], what: str, mean: Floats | None = None) -> None:
    """A line per column of ``values [E, columns]``, named in a legend where they are few, else by a colour bar."""
    count = values.shape[1]
    every = max(1, len(values) // 20)
    many = count > _MOST_NAMED
    look: dict[str, Any] = {"linewidth": 0.7, "alpha": 0.7} if many and mean is not None else {"linewidth": 1.1}
    look["marker"] = "." if mean is not None else "o"
    for column, (name, colour) in enumerate(zip(names, shades(count), strict=True)):
        axes.plot(values[:, column], color=colour, markevery=every, label=name, **look)
    if mean is not None:
        axes.plot(mean, color="black", linewidth=2.2, marker="o", markevery=every, label="mean")
    if not many:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return
    if mean is not None:
        axes.legend(handles=[axes.lines[-1]], loc="best")
    scale = ScalarMappable(Normalize(0, count - 1), ListedColormap(shades(256)))
    colour_bar(scale, axes, f"{what} ({names[0].split()[-1]} to {names[-1].split()[-1]})")
