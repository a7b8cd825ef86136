"""Judges `kvc` against the published policies at equal bytes, on tasks, lengths and samples that it was not made with.

`kvc` is the place that won the search, with its window of two tokens; windows of four and eight are judged beside it.
Published policies that observe do so with eight, Cake also with four: questions have three to six. All evict while
decoding, so that they hold the same bytes. H2O and ObservedAttention are left out for their time: they score by every
query of the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from kvcompress import make_policy
from kvcompress.analysis.intervals import bootstrap_interval, score_interval
from kvcompress.bench.search.trials import FULL, MakePolicy, Part, Trial
from kvcompress.bench.sweep.estimates import Estimate, estimate, mean_of
from kvcompress.bench.tasks.sample import MODES
from kvcompress.policies.base import Policy

KEEPS: Final = (0.25, 0.12, 0.06, 0.03)
CELLS: Final = (
    ("needle_20", 2048),
    ("variables_4", 1024),
    ("multi_value", 1024),
    ("copy", 1024),
    ("multi_turn", 1024),
)
OURS: Final = "kvc"
_BATCH = 50
_LONG, _OF_LONG = 1024, 50  # prompts beyond so many tokens take long: fewer samples of them

Scores = dict[tuple[str, int, str, float, str], list[float]]  # task, length, mode, keep, contender


def _made(name: str, cache_size: int, **parameters: Any) -> Policy:
    return make_policy(name, cache_size=cache_size, **parameters)


def _maker(name: str, **parameters: Any) -> MakePolicy:
    return partial(_made, name, **parameters)


_EVICTS: Final = "accumulate"  # published policies that would grow hold the same bytes with it
CONTENDERS: Final[Mapping[str, MakePolicy]] = MappingProxyType(
    {
        OURS: _maker("kvc", window_size=2),
        "kvc, window 4": _maker("kvc", window_size=4),
        "kvc, window 8": _maker("kvc", window_size=8),
        "cake, window 4": _maker("cake", window_size=4),
        "cake, window 8": _maker("cake", window_size=8),
        "snapkv": _maker("snapkv", window_size=8, decode=_EVICTS),
        "pyramidkv": _maker("pyramidkv", window_size=8, decode=_EVICTS),
        "adakv(snapkv)": _maker("adakv", base="snapkv", window_size=8, decode=_EVICTS),
        "defensivekv": _maker("defensivekv", window_size=8, decode=_EVICTS),
        "layer_defensivekv": _maker("layer_defensivekv", window_size=8, decode=_EVICTS),
        "tova": _maker("tova"),
        "expected_attention": _maker("expected_attention", decode=_EVICTS),
        "keydiff": _maker("keydiff"),
        "streaming_llm": _maker("streaming_llm"),
        "random": _maker("random", window_size=8),
    }
)


def parts_of(samples: int) -> Iterator[Part]:
    """All cells, a batch of samples of each before the next: a run that is stopped has as many of each."""
    for start in range(0, samples, _BATCH):
        for task, length in CELLS:
            if length > _LONG and start >= _OF_LONG:
                continue
            for mode in MODES:
                count = min(_BATCH, samples - start)
                yield Part(task=task, length=length, mode=mode, first=start, count=count, keeps=KEEPS)


def summarise(trials: list[Trial]) -> list[dict[str, Any]]:
    """Rows of the result: first means over all cells of a mode and budget, then each cell.

    A mean row has each policy's score relative to the full cache's (cells weigh the same) and what `kvc` gains on it,
    sample by sample, both with 95 % intervals.
    """
    scores: Scores = {}
    held: dict[tuple[str, int, str, float, str], list[int]] = {}
    for trial in trials:
        key = (trial.task, trial.length, trial.mode, trial.keep, trial.contender)
        scores.setdefault(key, []).extend(trial.scores)
        held.setdefault(key, []).append(trial.num_bytes)
    names = list(dict.fromkeys(trial.contender for trial in trials if trial.contender != FULL))
    means = [_mean_row(scores, mode, keep, name) for mode in MODES for keep in KEEPS for name in names]
    return means + [_cell_row(key, found, held[key]) for key, found in scores.items()]


def _mean_row(scores: Scores, mode: str, keep: float, name: str) -> dict[str, Any]:
    relative, gains = [], []
    for task, length in CELLS:
        full = scores[task, length, mode, 1.0, FULL]
        yardstick = sum(full) / len(full)
        own = scores[task, length, mode, keep, name]
        mine = scores[task, length, mode, keep, OURS]
        relative.append(_scaled(estimate(sum(own) / len(own), score_interval(own)), 1 / yardstick))
        gaps = [a - b for a, b in zip(mine, own, strict=True)]
        gains.append(_scaled(estimate(sum(gaps) / len(gaps), bootstrap_interval(gaps)), 1 / yardstick))
    samples = [len(scores[task, length, mode, keep, name]) for task, length in CELLS]
    return {
        "kind": "mean",
        "mode": mode,
        "keep": keep,
        "policy": name,
        "samples": samples,
        **_figures("of_full", mean_of(relative)),
        **_figures("kvc_gains", mean_of(gains)),
    }


def _cell_row(key: tuple[str, int, str, float, str], found: list[float], held: list[int]) -> dict[str, Any]:
    task, length, mode, keep, name = key
    score = estimate(sum(found) / len(found), score_interval(found))
    place = {"kind": "cell", "mode": mode, "keep": keep, "policy": name, "task": task, "length": length}
    return {**place, "samples": len(found), **_figures("score", score), "num_bytes": round(sum(held) / len(held))}


def _scaled(one: Estimate, factor: float) -> Estimate:
    return Estimate(mean=one.mean * factor, low=one.low * factor, high=one.high * factor)


def _figures(name: str, one: Estimate) -> dict[str, Any]:
    return {name: round(one.mean, 4), f"{name}_interval_95": [round(one.low, 4), round(one.high, 4)]}
