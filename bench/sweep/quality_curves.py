"""Quality over bytes and over speed: what a policy gives for what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from kvcompress.bench.sweep.drawing import MODE_TITLES, WIDTH, legend, look
from kvcompress.bench.sweep.estimates import Estimate
from kvcompress.bench.sweep.summary import Entry, Place, Summary

_FULL: Final = "#000000"
_MOST_LABELLED: Final = 6  # policies; the budgets of more would cover each other
_ASIDE: Final = 0.04  # of the bytes, from first to last policy: moves points out of each other's way


def quality_over_bytes(summary: Summary) -> Figure:
    """Mean score over the bytes held, a panel per mode."""
    figure, panels = _panels(summary.modes, 3.2)
    for mode, axes in panels.items():
        entries = _compared(summary, mode)
        for policy, mine in _by_policy(summary, entries).items():
            # Policies that hold the same bytes and are equally good would hide each other.
            aside = 1 + _ASIDE * (summary.policies.index(policy) / max(1, len(summary.policies) - 1) - 0.5)
            xs = [100 * entry.share * aside for entry in mine]
            _curve(axes, summary, policy, xs, [entry.score for entry in mine])
        _full_line(axes, entries)
        axes.set_xscale("log")
        _plain_log_ticks(axes, [100 * entry.share for entry in entries if not entry.is_full])
        axes.set_xlabel("KV cache held, % of the full cache's bytes")
    return _finished(figure, panels, _mean_label(summary))


def quality_over_speed(summary: Summary) -> Figure:
    """Mean score over decode speed, a panel per mode; small figures are the budgets, where there is room."""
    figure, panels = _panels(summary.modes, 3.2)
    for mode, axes in panels.items():
        entries = _compared(summary, mode)
        for policy, mine in _by_policy(summary, entries).items():
            speeds = [entry.tokens_per_second for entry in mine]
            _curve(axes, summary, policy, [speed.mean for speed in speeds], [entry.score for entry in mine], speeds)
            for entry, speed in zip(mine, speeds, strict=True) if len(summary.policies) <= _MOST_LABELLED else ():
                place = (speed.mean, 100 * entry.score.mean)
                axes.annotate(str(entry.budget), place, (4, 3), textcoords="offset points", fontsize=7, color="#444444")
        for entry in (entry for entry in entries if entry.is_full):
            speed = entry.tokens_per_second
            _point(axes, speed, entry.score)
        axes.set_xlabel("decoding one sequence, tokens per second")
    return _finished(figure, panels, _mean_label(summary))


def _panels(modes: Sequence[str], height: float) -> tuple[Figure, dict[str, Axes]]:
    figure = Figure(figsize=(WIDTH if len(modes) > 1 else 0.62 * WIDTH, height), layout="constrained")
    row = figure.subplots(1, len(modes), sharex=True, sharey=True, squeeze=False)[0]
    for mode, axes in zip(modes, row, strict=True):
        axes.set_title(MODE_TITLES[mode], loc="left")
    return figure, dict(zip(modes, row, strict=True))


def _finished(figure: Figure, panels: dict[str, Axes], label: str) -> Figure:
    first = next(iter(panels.values()))
    first.set_ylabel(label)
    first.set_ylim(-3, 105)
    legend(figure, first)
    return figure


def _compared(summary: Summary, mode: str) -> list[Entry]:
    """Entries whose means are over the same places, and whose bytes can be set against the full cache's."""
    return [entry for entry in summary.of_mode(mode) if entry.whole and isfinite(entry.share)]


def _by_policy(summary: Summary, entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    mine = {policy: [entry for entry in entries if entry.policy == policy] for policy in summary.policies}
    return {policy: sorted(found, key=lambda entry: entry.share) for policy, found in mine.items() if found}


def _curve(
    axes: Axes,
    summary: Summary,
    policy: str,
    xs: Sequence[float],
    scores: Sequence[Estimate],
    across: Sequence[Estimate] | None = None,
) -> None:
    """A policy's points with 95 % bars, joined from small to large budgets."""
    axes.errorbar(
        xs,
        [100 * score.mean for score in scores],
        yerr=_bars(scores, 100),
        xerr=None if across is None else _bars(across, 1),
        label=policy,
        linewidth=1.4 if across is None else 0.5,  # budgets only lead the eye from point to point there
        elinewidth=0.8,
        capsize=2,
        **look(summary, policy),  # type: ignore[arg-type]
    )


def _point(axes: Axes, speed: Estimate, score: Estimate) -> None:
    axes.errorbar(
        [speed.mean],
        [100 * score.mean],
        xerr=_bars([speed], 1),
        yerr=_bars([score], 100),
        label="full",
        color=_FULL,
        marker="*",
        markersize=9,
        elinewidth=0.8,
        capsize=2,
        linestyle="none",
    )


def _bars(estimates: Sequence[Estimate], scale: float) -> np.ndarray:
    """Distances to both ends, ``[2, points]``."""
    return scale * np.array([[one.mean - one.low, one.high - one.mean] for one in estimates]).T


def _full_line(axes: Axes, entries: Sequence[Entry]) -> None:
    for entry in (entry for entry in entries if entry.is_full):
        score = entry.score
        axes.axhspan(100 * score.low, 100 * score.high, color="#000000", alpha=0.07, linewidth=0)
        axes.axhline(100 * score.mean, color=_FULL, linestyle="-.", linewidth=1, label="full")


def _plain_log_ticks(axes: Axes, shares: Sequence[float]) -> None:
    """Ticks at 1, 2, 5 and their tens, written as plain figures."""
    if not shares:
        return
    steps = [step * 10.0**power for power in range(-3, 4) for step in (1, 2, 3, 5, 7)]
    low, high = 0.85 * min(shares), 1.18 * max(shares)
    inside = [step for step in steps if low <= step <= high]
    axes.set_xlim(low, high)
    axes.set_xticks(inside if len(inside) > 1 else [min(shares), max(shares)])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _mean_label(summary: Summary) -> str:
    places: list[Place] = next(iter(summary.places.values()))
    count = len({place.task for place in places})
    return f"score, %, mean of {count} task{'s' if count > 1 else ''}"
