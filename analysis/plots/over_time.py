"""Where attention goes over the steps of a run: one panel per question, and all of them on one sheet."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from kvcompress.analysis.metrics.generation_stages import weighted_mean
from kvcompress.analysis.metrics.of_sample.events import mean_over_events
from kvcompress.analysis.metrics.of_sample.positions import MARKS
from kvcompress.analysis.metrics.positions import distance_bin_bounds
from kvcompress.analysis.plots.bins import Floats, Whole, rows_on_common_edges
from kvcompress.analysis.plots.panels import (
    PROBABILITY,
    colour_bar,
    from_zero,
    mark_prompt,
    plain_numbers,
    probability_mesh,
    probability_norm,
    share_axis,
    step_limits,
    whole_ticks,
)
from kvcompress.analysis.plots.stored import (
    STEP_AXIS,
    event_tokens,
    floats,
    head_name,
    layer_numbers,
    mean_over,
    some_event,
    whole,
)
from kvcompress.analysis.plots.style import BLUE, GREEN, ORANGE, PURPLE, VERMILION, new_figure, shades, styled
from kvcompress.analysis.plots.text import counted
from kvcompress.analysis.summary.reader import Sample

Panel = Callable[[Axes, Sample], None]


def over_time(axes: Axes, sample: Sample) -> None:
    """Attention per key token at every step: mean over layers and query heads."""
    some_event(sample, "attention_over_time")
    mass = mean_over(floats(sample, "attention.position_mass"), 1, 2)  # [E, bins]
    values, edges = rows_on_common_edges(mass, event_tokens(sample))
    mesh = probability_mesh(axes, values, edges, np.arange(len(values) + 1) - 0.5, probability_norm(values))
    mark_prompt(axes, sample.summary.prompt_tokens, int(edges[-1]))
    whole_ticks(axes.xaxis)
    whole_ticks(axes.yaxis, 6)
    axes.set(xlabel="key position (token)", ylabel="step (event)", title="Attention over time, mean over layers")
    colour_bar(mesh, axes, PROBABILITY)


def recent_vs_distant(axes: Axes, sample: Sample) -> None:
    """Mass on the nearest tokens, on all others, and on the first ones at every step: mean over layers and heads."""
    some_event(sample, "recent_vs_distant")
    settings = sample.summary.settings
    recent = floats(sample, "attention.recent_mass")
    distant = 1 - recent - floats(sample, "attention.learned_sink_mass")
    lines = (
        (f"recent: less than {settings.recent_tokens} tokens away", recent, BLUE, "o"),
        ("distant: all other tokens", distant, VERMILION, "s"),
        (f"first {counted(settings.sink_tokens, 'token')}", floats(sample, "attention.sink_mass"), GREEN, "^"),
    )
    for name, values, colour, marker in lines:
        axes.plot(mean_over(values, 1, 2), color=colour, marker=marker, label=name, markevery=_every(sample))
    step_limits(axes, sample.events)
    share_axis(axes, "share of the attention mass")
    axes.set(xlabel=STEP_AXIS, title="Recent and distant tokens")
    axes.legend(loc="best")


def sequence_growth(axes: Axes, sample: Sample) -> None:
    """Tokens seen at every step, and tokens that each layer holds after it (mean over kv heads)."""
    some_event(sample, "sequence_growth")
    axes.plot(
        event_tokens(sample), color="black", marker="o", markevery=_every(sample), label="seen", linewidth=2, zorder=3
    )
    if sample.compressed:
        held = mean_over(whole(sample, "compression.held"), 2)  # [E, L]
        layers = layer_numbers(sample)
        for place, (layer, colour) in enumerate(zip(layers, shades(len(layers)), strict=True)):
            named = place in _named(len(layers))
            axes.plot(
                held[:, place],
                color=colour,
                marker=".",
                markevery=_every(sample),
                label=f"held, layer {layer}" if named else None,
            )
        title = "Sequence growth: tokens seen and held"
    else:
        title = "Sequence growth: every layer holds all tokens"
    step_limits(axes, sample.events)
    from_zero(axes)
    axes.set(xlabel=STEP_AXIS, ylabel="tokens", title=title)
    axes.legend(loc="best", ncols=2 if sample.compressed else 1)


def distance_profile(axes: Axes, sample: Sample) -> None:
    """Mass per range of distances between query and key: mean over queries and heads, a line per layer."""
    some_event(sample, "distance_profile")
    mass = mean_over(mean_over_events(sample, "attention.distance_mass").numpy(), 1)  # [L, bins]
    reached = int(np.flatnonzero(np.nan_to_num(mass).sum(0) > 0).max(initial=0)) + 1
    layers = layer_numbers(sample)
    for place, (layer, colour) in enumerate(zip(layers, shades(len(layers)), strict=True)):
        named = place in _named(len(layers))
        axes.plot(mass[place, :reached], color=colour, marker=".", label=f"layer {layer}" if named else None)
    axes.plot(mean_over(mass, 0)[:reached], color="black", linewidth=2, linestyle="--", label="mean")
    names = [str(first) if first == last else f"{first}-{last}" for first, last in distance_bin_bounds(reached)]
    axes.set_xticks(range(reached), names, rotation=35, ha="right", fontsize=7.5)
    from_zero(axes)
    axes.set(
        xlabel="distance from query to key (tokens, ranges double)",
        ylabel="share of the attention mass",
        title="Attention by relative position",
    )
    axes.legend(loc="best", ncols=2)


def cumulative_mass(axes: Axes, sample: Sample) -> None:
    """How much of the attention the strongest keys hold: mean over queries and heads, and the range over layers."""
    some_event(sample, "cumulative_mass")
    shares, percent = coverage_curve(sample)
    mean = mean_over(shares, 0)
    axes.fill_betweenx(percent, shares.min(0), shares.max(0), color=BLUE, alpha=0.2, label="range over layers")
    axes.plot(mean, percent, color=BLUE, marker="o", label="mean")
    lowest = float(np.nanmin(shares)) / 2
    for mark, colour in zip(MARKS, (ORANGE, PURPLE), strict=True):
        at = float(mean[list(percent).index(mark)])
        axes.plot([lowest, at, at], [mark, mark, 0], color=colour, linestyle="--", linewidth=1.2)
        axes.plot(at, mark, "D", color=colour, label=f"{mark} % of the mass: {at:.3g} % of the keys")
    axes.set(
        xscale="log",
        xlim=(lowest, 115),
        ylim=(0, 102),
        xlabel="strongest keys of a query (% of the keys it sees)",
        ylabel="attention mass (%)",
        title="Cumulative attention mass",
    )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    plain_numbers(axes.xaxis)
    axes.legend(loc="lower right", frameon=True, framealpha=0.85, edgecolor="none")


def coverage_curve(sample: Sample) -> tuple[Floats, Whole]:
    """Keys that hold a percentage of the mass, in percent of the keys seen.

    Returns:
        float64 ``[L, 6]``, mean over queries and heads, and the percentages int64 ``[6]``: those captured, and 100.
    """
    needed = sample.tensor("attention.coverage").double().nanmean(2)  # [E, L, 5]
    shares = 100 * needed / sample.tensor("attention.keys").double()[..., None]
    share = weighted_mean(shares, sample.tensor("event.queries")).numpy()  # [L, 5]
    percent = np.array([*sample.summary.settings.coverage_percent, 100], dtype=np.int64)
    return np.concatenate([share, np.full((len(share), 1), 100.0)], axis=1), percent


@styled
def comprehensive(sample: Sample) -> Figure:
    """Attention over time, recent and distant tokens, growth, relative position and cumulative mass on one sheet.

    Raises:
        NothingToDrawError: the sample has no event.
    """
    some_event(sample, "attention_analysis_comprehensive")
    title = (
        f"Attention of sample {sample.index}: {counted(sample.token_count, 'token')}, {counted(sample.events, 'step')}"
    )
    figure = new_figure(10.2, f"{title}, {counted(sample.summary.model.layers, 'layer')}, {head_name(sample, None)}")
    parts = figure.subfigures(2, 1, height_ratios=[1, 2], squeeze=False)[:, 0]
    over_time(parts[0].subplots(), sample)
    lower = (recent_vs_distant, sequence_growth, distance_profile, cumulative_mass)
    for axes, draw in zip(parts[1].subplots(2, 2).flat, lower, strict=True):
        draw(axes, sample)
    return figure


def alone(panel: Panel, height: float = 4.6) -> Callable[[Sample], Figure]:
    """A view of one panel.

    Args:
        panel: draws into axes.
        height: of the figure, in inches.
    """

    @styled
    @wraps(panel)
    def view(sample: Sample) -> Figure:
        figure = new_figure(height)
        panel(figure.subplots(), sample)
        return figure

    return view


def _every(sample: Sample) -> int:
    """A marker at each step, or at some twenty of many."""
    return max(1, sample.events // 20)


def _named(count: int, most: int = 6) -> set[int]:
    """Places of the lines that the legend names: all of a few; of many, some in order, the first and last too."""
    return {round(place) for place in np.linspace(0, count - 1, min(count, most))}
