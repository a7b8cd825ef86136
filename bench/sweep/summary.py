"""Rows of a sweep in the order in which people look at them: policies at budgets, by mode, over tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from kvcompress.bench.sweep.estimates import Estimate, estimate, mean_of, score_difference, score_of
from kvcompress.bench.sweep.grid import unique
from kvcompress.bench.sweep.policy_text import FULL
from kvcompress.bench.sweep.row import Cell, Row
from kvcompress.bench.tasks.registry import TASKS
from kvcompress.bench.tasks.sample import MODES


class Budget(NamedTuple):
    """What a policy was given; both are None for the full cache."""

    cache_size: int | None
    ratio: float | None

    def __str__(self) -> str:
        """For a table."""
        if self.ratio is not None:
            return f"{self.ratio:.0%} removed" if round(100 * self.ratio, 6) % 1 == 0 else f"{self.ratio:g} removed"
        return "all" if self.cache_size is None else str(self.cache_size)


class Place(NamedTuple):
    """What a policy was tried on, within a mode."""

    task: str
    length: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A policy at a budget in a mode, over everything that it was tried on.

    Attributes:
        policy: as people should read it.
        budget: what it was given.
        mode: query-aware or query-agnostic.
        rows: by place.
        share: bytes held of the full cache's, mean over the places.
        whole: whether there is a row for every place of the mode; only then can its means be compared.
    """

    policy: str
    budget: Budget
    mode: str
    rows: dict[Place, Row]
    share: float
    whole: bool

    @property
    def is_full(self) -> bool:
        """Whether it is the full cache."""
        return self.policy == FULL

    @property
    def score(self) -> Estimate:
        """Mean over the places."""
        return mean_of([score_of(row) for row in self.rows.values()])

    @property
    def tokens_per_second(self) -> Estimate:
        """Mean over the places."""
        return mean_of([estimate(row.tokens_per_second, row.tokens_per_second_ci95) for row in self.rows.values()])

    def mean(self, name: str) -> float:
        """Mean over the places of a plain figure of the rows, such as ``kv_bytes``."""
        return fmean(getattr(row, name) for row in self.rows.values())

    @property
    def layer_tokens(self) -> list[float]:
        """Tokens held by each layer, mean over the places."""
        return [fmean(layer) for layer in zip(*(row.layer_tokens for row in self.rows.values()), strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A sweep.

    Attributes:
        rows: all of them, in order.
        modes: in the usual order.
        policies: labels, without ``full``, sorted.
        texts: what each label stands for.
        budgets: in ascending order of tokens kept.
        places: by mode.
        entries: by mode, label and budget.
    """

    rows: Sequence[Row]
    modes: list[str]
    policies: list[str]
    texts: dict[str, str]
    budgets: list[Budget]
    places: dict[str, list[Place]]
    entries: dict[tuple[str, str, Budget], Entry]

    def of_mode(self, mode: str) -> list[Entry]:
        """The entries of a mode: the full cache, then by budget and policy."""
        contenders = [
            (FULL, Budget(None, None)),
            *((policy, size) for size in self.budgets for policy in self.policies),
        ]
        keys = [(mode, policy, budget) for policy, budget in contenders]
        return [self.entries[key] for key in keys if key in self.entries]


def summarise(rows: Sequence[Row]) -> Summary:
    """Sorts rows.

    Raises:
        ValueError: rows that cannot be told together: of two models, devices or dtypes, or twice the same cell with
            another number of samples, say.
    """
    _check_alike(rows)
    labels = _labels(rows)
    groups: dict[tuple[str, str, Budget], dict[Place, Row]] = {}
    for row in rows:
        cell = row.cell
        group = groups.setdefault((cell.mode, labels[cell.policy], _budget(cell)), {})
        if _place(cell) in group:
            raise ValueError(
                f"there are two rows of {cell}, which differ in samples or parameters. Put each run into a file of "
                "its own."
            )
        group[_place(cell)] = row
    modes = [mode for mode in MODES if any(row.cell.mode == mode for row in rows)]
    places = {mode: _places(rows, mode) for mode in modes}
    entries = {key: _entry(key, group, groups, places[key[0]]) for key, group in groups.items()}
    budgets = unique([budget for _, policy, budget in groups if policy != FULL])
    return Summary(
        rows=rows,
        modes=modes,
        policies=sorted({label for _, label, _ in groups if label != FULL}),
        texts={label: text for text, label in labels.items()},
        budgets=sorted(budgets, key=lambda budget: (budget.cache_size or 0, -(budget.ratio or 0.0))),
        places=places,
        entries=entries,
    )


def leaders(entries: Sequence[Entry], places: Sequence[Place]) -> tuple[set[str], bool]:
    """Which policies of one mode and budget are best on some places.

    Args:
        entries: the policies, each with rows of all the places.
        places: where.

    Returns:
        Labels of the one with the highest mean and of those that cannot be told from it (the interval of the paired
        difference holds zero); and whether it stands alone.
    """
    if not entries:
        return set(), False
    best = max(entries, key=lambda entry: fmean(entry.rows[place].score for place in places))
    level = {best.policy}
    for entry in entries:
        gap = mean_of([score_difference(entry.rows[place], best.rows[place]) for place in places])
        if entry is not best and not gap.excludes_zero:
            level.add(entry.policy)
    return level, len(level) == 1 and len(entries) > 1


def _check_alike(rows: Sequence[Row]) -> None:
    for name in ("model_digest", "device", "dtype"):
        found = unique([getattr(row.cell, name) for row in rows])
        if len(found) > 1:
            raise ValueError(
                f"the rows must be of one {name}; got {', '.join(found)}. Put each into a file of its own."
            )


def _places(rows: Sequence[Row], mode: str) -> list[Place]:
    """Where a mode was tried, in an order of its own: rows come in whatever order their cells were finished."""
    tasks = list(TASKS)
    found = {_place(row.cell) for row in rows if row.cell.mode == mode}
    return sorted(found, key=lambda place: (tasks.index(place.task) if place.task in tasks else len(tasks), place))


def _entry(
    key: tuple[str, str, Budget],
    rows: dict[Place, Row],
    groups: dict[tuple[str, str, Budget], dict[Place, Row]],
    places: Sequence[Place],
) -> Entry:
    mode, policy, budget = key
    full = groups.get((mode, FULL, Budget(None, None)), {})
    shares = [row.kv_bytes / full[place].kv_bytes for place, row in rows.items() if place in full]
    return Entry(
        policy=policy,
        budget=budget,
        mode=mode,
        rows=rows,
        share=fmean(shares) if shares else float("nan"),
        whole=set(rows) == set(places),
    )


def _labels(rows: Sequence[Row]) -> dict[str, str]:
    """A policy's name where that is enough to tell it from the others, else its text."""
    texts = unique([row.cell.policy for row in rows])
    names = [text.split(":")[0] for text in texts]
    return {text: name if names.count(name) == 1 else text for text, name in zip(texts, names, strict=True)}


def _budget(cell: Cell) -> Budget:
    return Budget(cell.cache_size, cell.ratio)


def _place(cell: Cell) -> Place:
    return Place(cell.task, cell.length, cell.seed)
