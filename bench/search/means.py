"""Means of trials: each cell's score, and each policy's relative to the full cache's and to ours, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvcompress.analysis.intervals import bootstrap_interval, score_interval
from kvcompress.bench.search.trials import FULL, Trial
from kvcompress.bench.sweep.estimates import Estimate, estimate, mean_of
from kvcompress.bench.tasks.sample import MODES

Place = tuple[str, int]  # task, length


class Means:
    """Trials put together.

    Args:
        trials: of every policy on the same samples, the full cache's among them.
        ours: name of the policy that the others are compared with.
    """

    def __init__(self, trials: Sequence[Trial], ours: str) -> None:
        self.ours = ours
        self.scores: dict[tuple[str, int, str, float, str], list[float]] = {}
        self.held: dict[tuple[str, int, str, float, str], list[int]] = {}
        for trial in trials:
            key = (trial.task, trial.length, trial.mode, trial.keep, trial.contender)
            self.scores.setdefault(key, []).extend(trial.scores)
            self.held.setdefault(key, []).append(trial.num_bytes)
        self.policies = list(dict.fromkeys(trial.contender for trial in trials if trial.contender != FULL))

    def mean_rows(self, places: Sequence[Place], keeps: Sequence[float], **extra: Any) -> list[dict[str, Any]]:
        """A row per mode, budget and policy: means over places, which weigh the same.

        ``of_full`` is the score relative to the full cache's, ``OURS_gains`` what ours gains on the policy, sample by
        sample; both with 95 % intervals.

        Args:
            places: tasks with lengths.
            keeps: parts of the cache that are kept.
            **extra: further fields of each row.
        """
        return [
            {**self._mean_row(places, mode, keep, name), **extra}
            for mode in MODES
            for keep in keeps
            for name in self.policies
        ]

    def cell_rows(self) -> list[dict[str, Any]]:
        """A row per cell: score with its interval, and bytes held."""
        rows = []
        for (task, length, mode, keep, name), found in self.scores.items():
            score = estimate(sum(found) / len(found), score_interval(found))
            held = self.held[task, length, mode, keep, name]
            place = {"kind": "cell", "mode": mode, "keep": keep, "policy": name, "task": task, "length": length}
            size = round(sum(held) / len(held))
            rows.append({**place, "samples": len(found), **_figures("score", score), "num_bytes": size})
        return rows

    def _mean_row(self, places: Sequence[Place], mode: str, keep: float, name: str) -> dict[str, Any]:
        relative, gains, samples = [], [], []
        for task, length in places:
            full = self.scores[task, length, mode, 1.0, FULL]
            yardstick = sum(full) / len(full)
            own = self.scores[task, length, mode, keep, name]
            mine = self.scores[task, length, mode, keep, self.ours]
            relative.append(_scaled(estimate(sum(own) / len(own), score_interval(own)), 1 / yardstick))
            gaps = [a - b for a, b in zip(mine, own, strict=True)]
            gains.append(_scaled(estimate(sum(gaps) / len(gaps), bootstrap_interval(gaps)), 1 / yardstick))
            samples.append(len(own))
        return {
            "kind": "mean",
            "mode": mode,
            "keep": keep,
            "policy": name,
            "samples": samples,
            **_figures("of_full", mean_of(relative)),
            **_figures(f"{self.ours}_gains", mean_of(gains)),
        }


def _scaled(one: Estimate, factor: float) -> Estimate:
    return Estimate(mean=one.mean * factor, low=one.low * factor, high=one.high * factor)


def _figures(name: str, one: Estimate) -> dict[str, Any]:
    return {name: round(one.mean, 4), f"{name}_interval_95": [round(one.low, 4), round(one.high, 4)]}
