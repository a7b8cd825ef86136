"""How many tokens each layer holds under each policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import ceil
from textwrap import fill

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kvcompress.bench.sweep.drawing import WIDTH, legend, look
from kvcompress.bench.sweep.summary import Budget, Summary


def tokens_by_layer(summary: Summary) -> Figure:
    """Tokens that each layer holds, mean over all modes and tasks, a panel per budget."""
    budgets = len(summary.budgets)
    across = max(1, budgets if budgets <= 3 else min(3, ceil(budgets / 2)))
    down = ceil(len(summary.budgets) / across) or 1
    figure = Figure(figsize=(WIDTH, 0.7 + 2.5 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat[len(summary.budgets) :]:
        axes.set_visible(False)
    curves = {key: _layers(summary, *key) for key in product(summary.policies, summary.budgets)}
    equal = _equal_everywhere(summary, curves)
    for axes, budget in zip(grid.flat, summary.budgets, strict=False):
        for policy in summary.policies:
            if policy not in equal and curves[policy, budget]:
                axes.plot(curves[policy, budget], label=policy, **look(summary, policy))
        if equal:  # they would hide each other
            axes.plot(curves[equal[0], budget], color="#777777", linestyle="--", label="the same in each layer")
        axes.set_title(f"budget: {budget}", loc="left")
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("layer")
    for row in grid:
        row[0].set_ylabel("tokens held per head")
    if equal:
        figure.suptitle(fill(f"The same in each layer: {', '.join(equal)}.", 110), fontsize=9, x=0.01, ha="left")
    legend(figure, grid[0, 0])
    return figure


def _layers(summary: Summary, policy: str, budget: Budget) -> list[float]:
    """Tokens held by each layer, mean over the modes."""
    found = [summary.entries.get((mode, policy, budget)) for mode in summary.modes]
    curves = [entry.layer_tokens for entry in found if entry is not None]
    return [sum(layer) / len(layer) for layer in zip(*curves, strict=True)]


def _equal_everywhere(summary: Summary, curves: Mapping[tuple[str, Budget], Sequence[float]]) -> list[str]:
    """Policies whose layers all hold the same, and as much as each other's, at every budget; [] of a single one."""
    flat: dict[tuple[int, ...], list[str]] = {}
    for policy in summary.policies:
        mine = [curves[policy, budget] for budget in summary.budgets]
        if all(curve and max(curve) - min(curve) < 0.5 for curve in mine):
            flat.setdefault(tuple(round(curve[0]) for curve in mine), []).append(policy)
    most = max(flat.values(), key=len, default=[])
    return most if len(most) > 1 else []
