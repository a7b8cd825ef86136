"""Pictures of a history: steps, before and after, the prompt's end, the tokens' influence, the order of filling."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from torch import Tensor

from kvcompress.analysis.metrics.step_change import change_map
from kvcompress.analysis.plots.bins import Floats
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
from kvcompress.analysis.plots.style import BLUE, GREEN, VERMILION, line_colours, new_figure, styled
from kvcompress.analysis.plots.text import token_text
from kvcompress.bench.workloads.diffusion_lm.history import History
from kvcompress.bench.workloads.diffusion_lm.history_analysis import COVERAGE_PERCENT, evolution, influence

_MOST_MAPS: Final = 4
_LEAST_DOUBT: Final = 1e-7  # what float32 can tell from certainty
_TOP_TOKENS: Final = 15
_AROUND: Final = 24  # tokens on each side of the prompt's end


@styled
def step_evolution(history: History) -> Figure:
    """What moved from step to step, how many keys matter, and the mass across the prompt's end, a line per layer."""
    over_steps = evolution(history)
    figure = new_figure(7.2, f"Attention over {history.steps} steps, mean over heads and queries")
    panels = figure.subplots(2, 2)
    curves = (
        (panels[0, 0], over_steps.moved, 1, "Attention that moved since the step before"),
        (panels[0, 1], over_steps.coverage, 0, f"Keys that hold {COVERAGE_PERCENT} % of a query's attention"),
        (panels[1, 0], over_steps.to_prompt, 0, "Paid by the generated tokens to the prompt"),
        (panels[1, 1], over_steps.from_prompt, 0, "Paid by the prompt to the generated tokens"),
    )
    colours = line_colours(len(history.maps))
    for axes, values, first, title in curves:
        for name, line, colour in zip(history.maps, values.numpy(), colours, strict=True):
            axes.plot(np.arange(first, first + len(line)), line, color=colour, label=name.replace("_", " "))
        axes.set(title=title, xlabel="step")
        step_limits(axes, history.steps)
        from_zero(axes)
        for border in np.flatnonzero(np.diff(history.blocks.numpy())):
            axes.axvline(border + 0.5, color="#cccccc", linewidth=0.8, zorder=0)
    panels[0, 0].set_ylabel("share of the mass")
    panels[0, 1].set_ylabel("keys (tokens)")
    share_axis(panels[1, 0], "share of the mass")
    share_axis(panels[1, 1], "share of the mass")
    panels[0, 1].legend(loc="best", ncols=2)
    return figure


@styled
def change_maps(history: History) -> Figure:
    """The attention of each layer before the first step and in the last one, and the difference."""
    names = _spread(list(history.maps))
    first = [_numpy(history.maps[name][0]) for name in names]
    last = [_numpy(history.maps[name][-1]) for name in names]
    differences = [_numpy(change_map(history.maps[name][0], history.maps[name][-1])) for name in names]
    figure = new_figure(2.7 * len(names) + 0.6, "Before and after: all masked, and all but the last filled")
    panels = figure.subplots(len(names), 3, squeeze=False)
    norm = probability_norm(*first, *last)
    most = max(float(np.abs(difference).max()) for difference in differences) or 1.0
    edges = history.first_token + np.arange(first[0].shape[0] + 1)
    for row, (name, before, after, difference) in enumerate(zip(names, first, last, differences, strict=True)):
        mesh = probability_mesh(panels[row, 0], before, edges, edges, norm)
        probability_mesh(panels[row, 1], after, edges, edges, norm)
        scale = TwoSlopeNorm(0.0, -most, most)
        change = panels[row, 2].pcolormesh(edges, edges, difference, cmap="RdBu_r", norm=scale)
        panels[row, 2].invert_yaxis()
        panels[row, 2].grid(visible=False)
        for axes, title in zip(panels[row], ("first step", "last step", "change"), strict=True):
            axes.set_title(f"{name.replace('_', ' ')}, {title}")
            axes.set(xlabel="key (token)" if row == len(names) - 1 else "", ylabel="query (token)")
            _cross(axes, history)
            whole_ticks(axes.xaxis, 5)
            whole_ticks(axes.yaxis, 5)
    colour_bar(mesh, list(panels[:, :2].flat), PROBABILITY)
    colour_bar(change, list(panels[:, 2]), "change of the probability")
    return figure


@styled
def prompt_boundary(history: History) -> Figure:
    """The attention around the prompt's end, mean over layers and steps."""
    mean = _mean(history)
    low, high = max(0, history.prompt_length - _AROUND), min(len(mean), history.prompt_length + _AROUND)
    part = mean[low:high, low:high]
    figure = new_figure(6.4, "Around the prompt's end, mean over layers, heads and steps")
    axes = figure.subplots()
    edges = history.first_token + np.arange(low, high + 1)
    mesh = probability_mesh(axes, part, edges, edges, probability_norm(part))
    _cross(axes, history)
    axes.set(xlabel="key (token); beyond the line: generated", ylabel="query (token); below the line: generated")
    axes.set_aspect("equal")
    colour_bar(mesh, axes, PROBABILITY)
    return figure


@styled
def token_influence(history: History) -> Figure:
    """What the prompt's tokens are worth to the generated ones, and what every token gets, means over layers."""
    prompt, received = (values.numpy() for values in influence(history))
    edges = history.first_token + np.arange(len(received) + 1)
    figure = new_figure(6.6, "Influence of tokens, mean over layers, heads and steps")
    panels = figure.subplot_mosaic([["prompt", "top"], ["all", "top"]], width_ratios=[2.4, 1])
    panels["prompt"].stairs(prompt, edges[: len(prompt) + 1], fill=True, color=BLUE)
    panels["prompt"].set(title="Attention that generated tokens pay to the prompt", xlabel="position (token)")
    panels["all"].stairs(received, edges, fill=True, color=GREEN)
    panels["all"].set_title("Attention that each token gets from all", pad=14)
    panels["all"].set_xlabel("position (token)")
    mark_prompt(panels["all"], int(edges[history.prompt_length]), int(edges[-1]))
    for name in ("prompt", "all"):
        panels[name].set_ylabel("attention received")
        from_zero(panels[name])
    order = np.argsort(-received, kind="stable")[:_TOP_TOKENS]
    panels["top"].barh(range(len(order)), received[order], color=VERMILION)
    panels["top"].set_yticks(
        range(len(order)), [f"{token_text(history.tokens[place])} {edges[place]}" for place in order]
    )
    panels["top"].invert_yaxis()
    panels["top"].set(title="Most looked at", xlabel="attention received")
    return figure


@styled
def filling_order(history: History) -> Figure:
    """At which step each token was filled, and how sure the model was of the blocks' tokens."""
    filled = history.filled_at().numpy()
    figure = new_figure(5.8, "The order in which masks were filled")
    above, below = figure.subplots(2, 1)
    above.scatter(np.arange(len(filled)), filled, s=14, color=BLUE)
    above.set(
        xlabel="generated token",
        ylabel="step that filled it",
        title="Blocks from left to right, within each the surest first",
    )
    whole_ticks(above.yaxis)
    doubt = np.maximum(1 - history.confidence.double().numpy(), _LEAST_DOUBT)
    below.semilogy(np.nanmean(doubt, axis=1), color=BLUE, label="mean")
    below.semilogy(np.nanmax(doubt, axis=1), color=VERMILION, label="of the least sure")
    step_limits(below, history.steps)
    plain_numbers(below.yaxis)
    below.set(xlabel="step", ylabel="1 - probability", title="Doubt in the predictions for the block's masks")
    below.legend(loc="best", ncols=2)
    return figure


PICTURES: Final[Mapping[str, Callable[[History], Figure]]] = MappingProxyType(
    {
        "diffusion_step_evolution": step_evolution,
        "diffusion_change_maps": change_maps,
        "diffusion_prompt_boundary": prompt_boundary,
        "diffusion_token_influence": token_influence,
        "diffusion_filling_order": filling_order,
    }
)


def _numpy(attention: Tensor) -> Floats:
    values: Floats = attention.double().numpy()
    return values


def _mean(history: History) -> Floats:
    total: Floats = np.mean([_numpy(layer.mean(0)) for layer in history.maps.values()], axis=0)
    return total


def _spread(names: list[str]) -> list[str]:
    """As many layers as are legible, evenly spaced, the first and last among them."""
    if len(names) <= _MOST_MAPS:
        return names
    return [names[round(place)] for place in np.linspace(0, len(names) - 1, _MOST_MAPS)]


def _cross(axes: Axes, history: History) -> None:
    """Lines where the prompt ends."""
    end = history.first_token + history.prompt_length
    axes.axvline(end, color=VERMILION, linewidth=0.8)
    axes.axhline(end, color=VERMILION, linewidth=0.8)
