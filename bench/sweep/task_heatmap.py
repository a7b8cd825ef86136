"""Every policy on every task, as a map of scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from kvcompress.bench.sweep.drawing import MODE_TITLES, WIDTH
from kvcompress.bench.sweep.estimates import mean_of, score_of
from kvcompress.bench.sweep.grid import unique
from kvcompress.bench.sweep.summary import Budget, Entry, Summary


def policies_by_task(summary: Summary, mode: str) -> Figure:
    """Scores of every policy on every task of a mode, a panel per budget."""
    entries = summary.of_mode(mode)
    places = summary.places[mode]
    columns = unique([(place.task, place.length) for place in places])
    budgets = [budget for budget in summary.budgets if any(entry.budget == budget for entry in entries)] or [
        Budget(None, None)
    ]
    height = 1.1 + sum(0.34 * (1 + sum(e.budget == budget for e in entries)) + 0.42 for budget in budgets)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    ratios = [1 + sum(entry.budget == budget for entry in entries) for budget in budgets]
    grid = figure.subplots(len(budgets), 1, sharex=True, squeeze=False, height_ratios=ratios)
    for axes, budget in zip(grid[:, 0], budgets, strict=True):
        shown = [entry for entry in entries if entry.is_full or entry.budget == budget]
        _heat(axes, shown, columns)
        axes.set_title(f"budget: {budget}{' tokens per layer' if budget.cache_size else ''}", loc="left")
    several = len({place.length for place in places}) > 1
    labels = [f"{task}\n{length}" if several else task for task, length in columns]
    turned = len(columns) > 8
    grid[-1, 0].set_xticks(
        range(len(columns)), labels, rotation=45 if turned else 0, ha="right" if turned else "center"
    )
    figure.suptitle(f"Score in %, {MODE_TITLES[mode]}", fontsize=11)
    return figure


def _heat(axes: Axes, entries: Sequence[Entry], columns: Sequence[tuple[str, int]]) -> None:
    scores = np.full((len(entries), len(columns)), np.nan)
    for line, entry in enumerate(entries):
        for column, (task, length) in enumerate(columns):
            mine = [place for place in entry.rows if (place.task, place.length) == (task, length)]
            if mine:
                scores[line, column] = 100 * mean_of([score_of(entry.rows[place]) for place in mine]).mean
    axes.imshow(scores, cmap="cividis", norm=Normalize(0, 100), aspect="auto")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_yticks(range(len(entries)), [entry.policy for entry in entries])
    for line, column in np.ndindex(*scores.shape):
        value = scores[line, column]
        text = "-" if np.isnan(value) else f"{value:.0f}"
        axes.text(column, line, text, ha="center", va="center", color="black" if value > 55 else "white")
