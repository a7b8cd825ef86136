"""Compares two sweeps cell by cell: where the score fell beyond its interval, and where more bytes are held."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

from kvcompress.bench.sweep.estimates import Estimate, score_difference
from kvcompress.bench.sweep.grid import unique
from kvcompress.bench.sweep.row import Row

SCHEMA: Final = "kvcompress.bench.compare_rows/1"
_CELL_CONDITIONS: Final = ("model", "model_digest", "device", "dtype", "n")
_ROW_CONDITIONS: Final = ("cpu", "accelerator", "batch_size")


class CellKey(NamedTuple):
    """What makes a cell of one sweep the same as one of another, whatever code, model and machine ran it."""

    policy: str
    cache_size: int | None
    ratio: float | None
    task: str
    length: int
    mode: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CellChange:
    """A cell of both sweeps.

    Attributes:
        before: its row in the first.
        after: and in the second.
        score: second score minus first, with the 95 % interval of the difference.
        bytes_ratio: bytes held by the second over those of the first.
        speed_ratio: tokens per second, likewise; told, not judged: a busy machine changes it more than code does.
        worse: the interval of the score's difference lies below zero.
        larger: more bytes beyond the threshold.
        better: the interval of the score's difference lies above zero.
    """

    before: Row
    after: Row
    score: Estimate
    bytes_ratio: float
    speed_ratio: float
    worse: bool
    larger: bool
    better: bool

    @property
    def regressed(self) -> bool:
        """Whether it got worse in either way."""
        return self.worse or self.larger


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsComparison:
    """Two sweeps side by side.

    Attributes:
        threshold: growth of the bytes that matters, 0.05 for 5 %.
        changes: cells of both, in the first one's order.
        only_first: cells that the second does not have.
        only_second: the reverse.
        differences: conditions that are not the same, with what each sweep has.
    """

    threshold: float
    changes: Sequence[CellChange]
    only_first: Sequence[CellKey]
    only_second: Sequence[CellKey]
    differences: Mapping[str, tuple[str, str]]

    @property
    def regressions(self) -> list[CellChange]:
        """The cells that got worse."""
        return [change for change in self.changes if change.regressed]

    def as_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "schema": SCHEMA,
            "threshold": self.threshold,
            "differences": {name: list(pair) for name, pair in self.differences.items()},
            "regressions": len(self.regressions),
            "cells": [
                {
                    **key_of(change.before)._asdict(),
                    "score": [change.before.score, change.after.score],
                    "difference": asdict(change.score),
                    "kv_bytes": [change.before.kv_bytes, change.after.kv_bytes],
                    "speed_ratio": change.speed_ratio,
                    "worse": change.worse,
                    "larger": change.larger,
                    "better": change.better,
                }
                for change in self.changes
            ],
            "only_in_first": [key._asdict() for key in self.only_first],
            "only_in_second": [key._asdict() for key in self.only_second],
        }


def compare_rows(first: Sequence[Row], second: Sequence[Row], threshold: float = 0.05) -> RowsComparison:
    """Matches the cells of two sweeps.

    Args:
        first: rows of the sweep before.
        second: rows of the sweep after.
        threshold: growth of the bytes that matters, at least 0.

    Raises:
        ValueError: a threshold that is negative or no number, no cell in common, or a cell twice in one sweep.
    """
    if not threshold >= 0 or math.isinf(threshold):
        raise ValueError(f"threshold must be a fraction of at least 0, such as 0.05; got {threshold}")
    before, after = _by_key(first), _by_key(second)
    both = [key for key in before if key in after]
    if not both:
        raise ValueError(
            "the two sweeps have no cell in common (policy, budget, task, length, mode and seed). Compare sweeps of "
            "the same command."
        )
    return RowsComparison(
        threshold=threshold,
        changes=[_change(before[key], after[key], threshold) for key in both],
        only_first=[key for key in before if key not in after],
        only_second=[key for key in after if key not in before],
        differences=_differences(first, second),
    )


def key_of(row: Row) -> CellKey:
    """The key of a row's cell."""
    return CellKey(*(getattr(row.cell, name) for name in CellKey._fields))


def _by_key(rows: Sequence[Row]) -> dict[CellKey, Row]:
    found: dict[CellKey, Row] = {}
    for row in rows:
        if key_of(row) in found:
            raise ValueError(f"one of the sweeps has two rows of {row.cell}. Put each run into a file of its own.")
        found[key_of(row)] = row
    return found


def _change(before: Row, after: Row, threshold: float) -> CellChange:
    score = score_difference(before, after)
    bytes_ratio = after.kv_bytes / before.kv_bytes if before.kv_bytes else math.inf if after.kv_bytes else 1.0
    return CellChange(
        before=before,
        after=after,
        score=score,
        bytes_ratio=bytes_ratio,
        speed_ratio=after.tokens_per_second / before.tokens_per_second if before.tokens_per_second else 1.0,
        worse=score.high < 0,
        larger=bytes_ratio > 1 + threshold,
        better=score.low > 0,
    )


def _differences(first: Sequence[Row], second: Sequence[Row]) -> dict[str, tuple[str, str]]:
    found = {}
    for name in (*_CELL_CONDITIONS, *_ROW_CONDITIONS, "versions"):
        before, after = (_values(rows, name) for rows in (first, second))
        if before != after:
            found[name] = (before, after)
    return found


def _values(rows: Sequence[Row], name: str) -> str:
    """The values of a condition in a sweep, as text."""
    if name == "versions":
        texts = [", ".join(f"{package} {number}" for package, number in sorted(row.versions.items())) for row in rows]
    else:
        texts = [str(getattr(row.cell if name in _CELL_CONDITIONS else row, name)) for row in rows]
    return " and ".join(sorted(unique(texts)))
