"""Which tokens matter to what was generated, and how attention differs between the stages of a generation."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kvcompress.analysis.metrics.generation_stages import STAGES, stages
from kvcompress.analysis.metrics.of_sample.influence import influence
from kvcompress.analysis.metrics.of_sample.stages import by_stage
from kvcompress.analysis.plots.bins import Floats, Whole, bin_edges
from kvcompress.analysis.plots.panels import (
    colour_bar,
    from_zero,
    mark_prompt,
    named_ticks,
    probability_mesh,
    probability_norm,
    share_axis,
    whole_ticks,
)
from kvcompress.analysis.plots.problems import NothingToDrawError
from kvcompress.analysis.plots.stored import layer_numbers, mean_over, some_event
from kvcompress.analysis.plots.style import BLUE, GREEN, ORANGE, PURPLE, new_figure, styled
from kvcompress.analysis.plots.text import counted, token_text
from kvcompress.analysis.summary.reader import Sample
from kvcompress.analysis.summary.schema import DECODE

_TOP_TOKENS = 15
_MOST_COLUMNS = 400  # of a map; more tokens share columns
_STAGE_COLOURS = (BLUE, GREEN, ORANGE, PURPLE)
_SHARES = (
    ("entropy_normalised", "entropy /\nln(keys)"),
    ("maximum", "largest\nprobability"),
    ("density", "density"),
    ("sink_mass", "mass on\nfirst tokens"),
    ("recent_mass", "mass on\nrecent tokens"),
    ("prompt_mass", "mass on\nthe prompt"),
)


@styled
def token_position_importance(sample: Sample) -> Figure:
    """Attention that each token received: over positions, in every layer, and the tokens that received most.

    From all decoded tokens; where nothing was decoded, from the last event whose mass
    per token is stored.

    Raises:
        NothingToDrawError: neither is there.
    """
    received, what = importance(sample)
    mean = mean_over(received, 0)
    figure = new_figure(8.6, f"Importance of tokens, sample {sample.index}: {what}")
    panels = figure.subplot_mosaic([["line", "top"], ["map", "top"]], width_ratios=[2.4, 1])
    shown, edges, note = _peaks(mean)
    panels["line"].stairs(shown, edges, fill=True, color=BLUE)
    panels["line"].set(ylabel="attention received", xlim=(0, len(mean)))
    panels["line"].set_title(f"By position, mean over layers{note}", pad=14)  # room for the mark of the prompt's end
    from_zero(panels["line"])
    whole_ticks(panels["line"].xaxis, 8)
    mark_prompt(panels["line"], sample.summary.prompt_tokens, len(mean))
    _layer_map(panels["map"], received, sample)
    _top_tokens(panels["top"], mean, sample)
    return figure


@styled
def generation_stages_comparison(sample: Sample) -> Figure:
    """Attention in the prompt and in the thirds of the generation: shares over all layers, and entropy of each layer.

    Raises:
        NothingToDrawError: the sample has no event.
    """
    some_event(sample, "generation_stages_comparison")
    stage = stages(sample.kinds)
    there = [number for number in range(len(STAGES)) if bool((stage == number).any())]
    names = [f"{STAGES[number]} ({counted(int((stage == number).sum()), 'step')})" for number in there]
    figure = new_figure(7.6, f"Stages of the generation, sample {sample.index}, mean over queries and heads")
    above, below = figure.subplots(2, 1)
    metrics = by_stage(sample)
    means = [metrics[name].nanmean(1) for name, _ in _SHARES]  # [4] each
    width = 0.8 / len(there)
    for order, (number, name) in enumerate(zip(there, names, strict=True)):
        places = np.arange(len(means)) + (order - (len(there) - 1) / 2) * width
        values = [float(mean[number]) for mean in means]
        above.bar(places, values, width * 0.92, color=_STAGE_COLOURS[number], label=name)
    above.set_xticks(range(len(means)), [label for _, label in _SHARES])
    above.grid(visible=False, axis="x")
    share_axis(above, "share (0 to 1)")
    above.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="stage")
    entropies: Floats = metrics["entropy"].numpy()  # [4, L]
    for number in there:
        below.plot(entropies[number], color=_STAGE_COLOURS[number], marker="os^D"[number])
    named_ticks(below.xaxis, layer_numbers(sample))
    from_zero(below)
    below.set(xlabel="layer", ylabel="entropy (nats)", title="Entropy by layer")
    return figure


def importance(sample: Sample) -> tuple[Floats, str]:
    """Attention that each token received: float64 ``[L, T]``, and from whom.

    Raises:
        NothingToDrawError: nothing was decoded, and no event's mass per token is stored.
    """
    paid = influence(sample)
    if paid is not None:
        decoded = int((sample.kinds == DECODE).sum())
        by_layer: Floats = paid.numpy()
        return by_layer, f"mean attention of {counted(decoded, 'decoded token')}"
    if not sample.token_mass_events:
        raise NothingToDrawError(
            f"token_position_importance needs decoded tokens or a stored mass per token; sample {sample.index} has "
            "neither. Capture a generation."
        )
    event = sample.token_mass_events[-1]
    received: Floats = sample.token_mass(event).double().numpy()
    return received, f"mean attention of the queries of step {event}"


def token_label(sample: Sample, position: int) -> str:
    """A token's position and text: ``12 “the”``."""
    tokens = sample.summary.tokens
    return str(position) if tokens is None else f"{position} {token_text(tokens[position])}"


def _peaks(mean: Floats) -> tuple[Floats, Whole, str]:
    """The tokens' values, or, of very many, the largest of each range, so that none is too thin to be seen."""
    _, edges = bin_edges(len(mean), min(_MOST_COLUMNS, len(mean)))
    widest = int(np.diff(edges).max())
    note = "" if widest == 1 else f" (largest of up to {widest} tokens each)"
    return np.maximum.reduceat(np.nan_to_num(mean), edges[:-1]), edges, note


def _layer_map(axes: Axes, received: Floats, sample: Sample) -> None:
    layers = layer_numbers(sample)
    _, edges = bin_edges(received.shape[1], min(_MOST_COLUMNS, received.shape[1]))
    values = np.add.reduceat(received, edges[:-1], axis=1) / np.diff(edges)
    mesh = probability_mesh(axes, values, edges, np.arange(len(layers) + 1) - 0.5, probability_norm(values))
    named_ticks(axes.yaxis, layers, 16)
    whole_ticks(axes.xaxis, 8)
    axes.set(xlabel="token position", ylabel="layer", title="By position and layer")
    colour_bar(mesh, axes, "attention received per token\n(blank: less)")


def _top_tokens(axes: Axes, mean: Floats, sample: Sample) -> None:
    """The tokens that received most, largest at the top."""
    known = np.nan_to_num(mean, nan=-1.0)
    best = np.argsort(-known, kind="stable")[: min(_TOP_TOKENS, len(mean))]
    axes.barh(range(len(best)), np.nan_to_num(mean[best]), color=BLUE)
    axes.set_yticks(range(len(best)), [token_label(sample, int(position)) for position in best], fontsize=8)
    axes.set_ylim(len(best) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="attention received", title="Tokens that received most")
