"""Successive halving: many places with few samples, then the best of them with more.

Source: K. Jamieson, A. Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", AISTATS
    2016.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from kvcompress.bench.search.space import GUESSES, Point, random_points
from kvcompress.bench.search.trials import Bench, Part, Trial, relative_score
from kvcompress.bench.tasks.sample import MODES

TASKS: Final = ("needle_8", "variables_2", "key_value")
FIRST: Final = 100_000  # no sample of the judge's, which count from 0
_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A round of the search.

    Attributes:
        best: how many places go on from the round before; in the first round, how many are
            drawn at random, beside the guesses.
        around: around how many of the very best all neighbours are tried too.
        samples: of each task, length and mode.
        lengths: tokens of each prompt.
        keeps: parts of the cache that are kept.
    """

    best: int
    around: int = 0
    samples: int
    lengths: tuple[int, ...]
    keeps: tuple[float, ...]


STAGES: Final = (
    Stage(best=112, samples=8, lengths=(512,), keeps=(0.12, 0.06, 0.03)),
    Stage(best=28, samples=16, lengths=(512,), keeps=(0.12, 0.06, 0.03)),
    Stage(best=8, around=1, samples=32, lengths=(512,), keeps=(0.12, 0.06, 0.03)),
    Stage(best=4, samples=48, lengths=(256, 512), keeps=(0.25, 0.12, 0.06)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A place and its score relative to the full cache."""

    point: Point
    score: float


def parts_of(stage: Stage) -> Iterator[Part]:
    """The samples of a stage, those of an earlier one first, so that their trials are used again."""
    for start in range(0, stage.samples, _BATCH):
        for length in stage.lengths:
            for mode in MODES:
                for task in TASKS:
                    count = min(_BATCH, stage.samples - start)
                    yield Part(task=task, length=length, mode=mode, first=FIRST + start, count=count, keeps=stage.keeps)


def search(
    bench: Bench, stages: tuple[Stage, ...], seed: int, report: Callable[[int, list[Ranked]], None]
) -> list[Ranked]:
    """Runs all stages.

    Args:
        bench: runs the trials; those of an interrupted search are not run again.
        stages: at least one.
        seed: of the first places.
        report: is told each stage's number and result.

    Returns:
        The last stage's places, the best first.
    """
    points = list(dict.fromkeys([*random_points(stages[0].best, seed), *GUESSES]))
    ranked: list[Ranked] = []
    for number, stage in enumerate(stages):
        if number:
            points = [one.point for one in ranked[: stage.best]]
            points += [near for one in ranked[: stage.around] for near in one.point.neighbours()]
            points = list(dict.fromkeys(points))
        ranked = rank(points, [trial for part in parts_of(stage) for trial in run_part(bench, part, points)])
        report(number, ranked)
    return ranked


def run_part(bench: Bench, part: Part, points: list[Point]) -> list[Trial]:
    """All places on one part."""
    return bench.run(part, {str(point): point.policy for point in points})


def rank(points: list[Point], trials: list[Trial]) -> list[Ranked]:
    """Places by score, the best first; equal ones in their order."""
    scores = relative_score(trials)
    ranked = [Ranked(point=point, score=scores[str(point)]) for point in points]
    return sorted(ranked, key=lambda one: -one.score)
