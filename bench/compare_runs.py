"""Compares two benchmark runs row by row: what got slower by more than its noise."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

SCHEMA: Final = "kvcompress.bench.compare/1"
FAMILY: Final = "kvcompress.bench"  # what the schema of every run begins with
# What figures depend on besides the code; other values make a ratio say less.
CONDITIONS: Final = ("device", "driver", "cpu", "clock", "threads", "torch", "triton", "transformers")
_FIGURES: Final = ("median", "q20", "q80")


class RowKey(NamedTuple):
    """What makes a row of one run the same as one of another."""

    case: str
    shape: str
    dtype: str
    provider: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """A row's times of one call in ``unit``."""

    unit: str
    median: float
    q20: float
    q80: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRun:
    """A run as it was read.

    Attributes:
        name: of its file.
        conditions: see :data:`CONDITIONS`.
        rows: its timed rows; those that were left out of the timing are not among them.
    """

    name: str
    conditions: Mapping[str, Any]
    rows: Mapping[RowKey, Timing]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A row of both runs.

    Attributes:
        key: which one.
        before: its times in the first run.
        after: and in the second.
        ratio: second median by the first; above 1 is slower.
        overlap: whether the intervals between the 20 % and 80 % quantiles have a point in common.
        regressed: slower beyond the threshold, without overlap.
        improved: faster beyond it, without overlap.
    """

    key: RowKey
    before: Timing
    after: Timing
    ratio: float
    overlap: bool
    regressed: bool
    improved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        threshold: change of the median that matters, 0.05 for 5 %.
        changes: rows of both runs, in the first one's order.
        only_first: rows that the second run does not have, or has in another unit.
        only_second: the reverse.
        differences: conditions that are not the same, with both values.
    """

    threshold: float
    changes: Sequence[Change]
    only_first: Sequence[RowKey]
    only_second: Sequence[RowKey]
    differences: Mapping[str, tuple[Any, Any]]

    @property
    def regressions(self) -> list[Change]:
        """The rows that got slower."""
        return [change for change in self.changes if change.regressed]

    def as_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "schema": SCHEMA,
            "threshold": self.threshold,
            "differences": {name: list(pair) for name, pair in self.differences.items()},
            "regressions": len(self.regressions),
            "rows": [
                {
                    **change.key._asdict(),
                    "unit": change.before.unit,
                    "ratio": change.ratio,
                    "before": _figures(change.before),
                    "after": _figures(change.after),
                    "overlap": change.overlap,
                    "regressed": change.regressed,
                    "improved": change.improved,
                }
                for change in self.changes
            ],
            "only_in_first": [key._asdict() for key in self.only_first],
            "only_in_second": [key._asdict() for key in self.only_second],
        }


def read_run(path: Path) -> BenchRun:
    """Reads the JSON of a benchmark run.

    Args:
        path: a file that one of the benchmarks wrote.

    Raises:
        ValueError: no file, no JSON, or not the JSON of a run with times; the message names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}. Give the JSON file of a benchmark run.") from error
    except ValueError as error:  # no UTF-8, or no JSON
        raise ValueError(f"{path} is no JSON ({error}). Give the file that a benchmark wrote.") from error
    if not isinstance(content, dict) or not str(content.get("schema", "")).startswith(FAMILY):
        raise ValueError(f"{path} is not a run of a benchmark: its schema must begin with {FAMILY!r}.")
    cases = content.get("cases")
    if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases):
        raise ValueError(f"{path} must hold a list 'cases' of objects; it is damaged. Run the benchmark again.")
    rows: dict[RowKey, Timing] = {}
    for case in cases:
        if "median" in case:
            key, timing = _row(case, path)
            if key in rows:
                raise ValueError(f"{path} has two rows of {' / '.join(key)}; it is damaged. Run the benchmark again.")
            rows[key] = timing
    if not rows:
        raise ValueError(f"{path} holds no timed rows. Give a run of times, such as kernels_cpu.json.")
    return BenchRun(name=path.name, conditions={name: content.get(name) for name in CONDITIONS}, rows=rows)


def compare(first: BenchRun, second: BenchRun, threshold: float = 0.05) -> Comparison:
    """Matches the rows of two runs.

    Args:
        first: the run before.
        second: the run after.
        threshold: change of the median that matters, at least 0.

    Raises:
        ValueError: a negative threshold, or one that is no number.
    """
    if not threshold >= 0 or math.isinf(threshold):
        raise ValueError(f"threshold must be a fraction of at least 0, such as 0.05; got {threshold}")
    both = [key for key in first.rows if key in second.rows and first.rows[key].unit == second.rows[key].unit]
    names = [name for name in CONDITIONS if first.conditions[name] != second.conditions[name]]
    return Comparison(
        threshold=threshold,
        changes=[_change(key, first.rows[key], second.rows[key], threshold) for key in both],
        only_first=[key for key in first.rows if key not in both],
        only_second=[key for key in second.rows if key not in both],
        differences={name: (first.conditions[name], second.conditions[name]) for name in names},
    )


def _row(case: Mapping[str, Any], path: Path) -> tuple[RowKey, Timing]:
    missing = [name for name in (*RowKey._fields, "unit") if not isinstance(case.get(name), str)]
    missing += [name for name in _FIGURES if not _is_time(case.get(name))]
    if missing:
        raise ValueError(f"{path} has a row without {', '.join(missing)}; it is damaged. Run the benchmark again.")
    key = RowKey(*(case[name] for name in RowKey._fields))
    return key, Timing(unit=case["unit"], **{name: float(case[name]) for name in _FIGURES})


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _change(key: RowKey, before: Timing, after: Timing, threshold: float) -> Change:
    ratio = after.median / before.median
    overlap = before.q20 <= after.q80 and after.q20 <= before.q80
    return Change(
        key=key,
        before=before,
        after=after,
        ratio=ratio,
        overlap=overlap,
        regressed=ratio > 1 + threshold and not overlap,
        improved=ratio < 1 / (1 + threshold) and not overlap,
    )


def _figures(timing: Timing) -> dict[str, float]:
    return {name: asdict(timing)[name] for name in _FIGURES}
