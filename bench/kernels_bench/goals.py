"""What the kernels are meant to reach on a GPU, judged by the rows of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from kvcompress.bench.kernels_bench.decode_case import IN_A_GRAPH, ONE_LAUNCH, WITHOUT_EVICTION
from kvcompress.bench.kernels_bench.device_timing import DEVICE_SUFFIX
from kvcompress.bench.measure import CaseRow

LONG: Final = "131072 ->"  # in the label of the shapes that the goals of the prefill are about
MOST_TIMES_ROOFLINE: Final = 1.25
LEAST_TIMES_FASTER: Final = 20.0
MOST_TIMES_WITHOUT_EVICTION: Final = 1.05


class KernelRow(CaseRow):
    """A row with the share of the measured copy bandwidth that the least traffic of its work amounts to."""

    share_of_bandwidth: float | None


class Goal(NamedTuple):
    """A goal, what was reached, and whether that is enough."""

    goal: str
    case: str
    shape: str
    dtype: str
    wanted: float
    got: float
    met: bool


class _Key(NamedTuple):
    case: str
    shape: str
    dtype: str


def goals(rows: Sequence[KernelRow]) -> list[Goal]:
    """Judges the goals that the rows say something about, by times without launches.

    Args:
        rows: of a run on a GPU; others know no times without launches, and meet no goal and miss none.
    """
    return [goal for key, times in _by_case(rows).items() for goal in _goals_of(key, times)]


def _by_case(rows: Sequence[KernelRow]) -> dict[_Key, dict[str, KernelRow]]:
    cases: dict[_Key, dict[str, KernelRow]] = {}
    for row in rows:
        cases.setdefault(_Key(row["case"], row["shape"], row["dtype"]), {})[row["provider"]] = row
    return cases


def _goals_of(key: _Key, rows: dict[str, KernelRow]) -> Iterator[Goal]:
    ours = rows.get(f"triton{DEVICE_SUFFIX}")
    if ours is None:
        return
    if key.case.startswith("compression") and LONG in key.shape:
        share, eager = ours["share_of_bandwidth"], rows.get(f"authors_eager{DEVICE_SUFFIX}")
        if share:
            yield _at_most("times the roofline", key, MOST_TIMES_ROOFLINE, 1 / share)
        if eager is not None:
            yield _at_least("times faster than the authors' way", key, eager["median"] / ours["median"])
    for suffix in ("", f"_{ONE_LAUNCH}", f"_{IN_A_GRAPH}"):
        evicting, bare = f"triton{suffix}", f"triton_{WITHOUT_EVICTION}{suffix}"
        with_eviction, without = rows.get(evicting + DEVICE_SUFFIX), rows.get(bare + DEVICE_SUFFIX)
        if key.case == "decode_attend" and with_eviction is not None and without is not None:
            ratio = with_eviction["median"] / without["median"]
            yield _at_most(f"{evicting}: times the step without eviction", key, MOST_TIMES_WITHOUT_EVICTION, ratio)


def _at_most(goal: str, key: _Key, wanted: float, got: float) -> Goal:
    return Goal(goal, *key, wanted=wanted, got=got, met=got <= wanted)


def _at_least(goal: str, key: _Key, got: float) -> Goal:
    return Goal(goal, *key, wanted=LEAST_TIMES_FASTER, got=got, met=got >= LEAST_TIMES_FASTER)
