"""The work of ``kvcompress bench compare``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from kvcompress.commands.failures import warn
from kvcompress.commands.figures import three_digits
from kvcompress.commands.sweep_comparison import SUFFIX, compare_sweeps

if TYPE_CHECKING:
    from kvcompress.bench.compare_runs import Change, Comparison, RowKey, Timing


def compare_files(first: Path, second: Path, threshold: float, *, as_json: bool) -> bool:
    """Compares two runs and prints the outcome.

    Args:
        first: JSON of the run before, or the ``.jsonl`` rows of a sweep.
        second: the same of the run after.
        threshold: fraction beyond which a change matters.
        as_json: print one JSON object instead of tables.

    Returns:
        Whether a row regressed.

    Raises:
        ValueError: a file is not the JSON of a run, or the threshold is negative.
    """
    from kvcompress.bench.compare_runs import compare, read_run

    if SUFFIX in (first.suffix, second.suffix):  # rows of sweeps; anything else is refused with the file's name
        return compare_sweeps(first, second, threshold, as_json=as_json)
    found = compare(read_run(first), read_run(second), threshold)
    if found.differences:
        pairs = (f"{name} {before} / {after}" for name, (before, after) in found.differences.items())
        warn(f"the runs were not made under the same conditions: {', '.join(pairs)}; the ratios say less")
    if as_json:
        sys.stdout.write(json.dumps(found.as_json(), allow_nan=False) + "\n")
    else:
        show(found, Console(highlight=False), names=(str(first), str(second)))
    return bool(found.regressions)


def show(found: Comparison, console: Console, names: tuple[str, str]) -> None:
    """Prints a comparison for people: a table per case and shape, then what only one run has."""
    groups: dict[tuple[str, str, str], list[Change]] = {}
    for change in found.changes:
        groups.setdefault(change.key[:3], []).append(change)
    for (case, shape, dtype), changes in groups.items():
        console.print(f"{case}: {shape}, {dtype}", markup=False)
        console.print(_table(changes))
    for keys, name in ((found.only_first, names[0]), (found.only_second, names[1])):
        _show_single(keys, name, console)
    slower, faster = len(found.regressions), sum(change.improved for change in found.changes)
    console.print(
        f"{len(found.changes)} rows compared: {slower} slower and {faster} faster by more than {found.threshold:.1%} "
        "with intervals apart",
        markup=False,
    )


def _table(changes: Sequence[Change]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 2))
    table.add_column("provider")
    for heading in ("before", "after", "ratio", ""):
        table.add_column(heading, justify="right" if heading else "left")
    for change in changes:
        verdict = "SLOWER" if change.regressed else "faster" if change.improved else ""
        table.add_row(change.key.provider, _times(change.before), _times(change.after), f"{change.ratio:.3f}", verdict)
    return table


def _times(timing: Timing) -> str:
    low, middle, high = (three_digits(value) for value in (timing.q20, timing.median, timing.q80))
    return f"{middle} {timing.unit.split()[0]} \\[{low}, {high}]"  # rich would read [..] as a style


def _show_single(keys: Sequence[RowKey], name: str, console: Console) -> None:
    if keys:
        console.print(f"only in {name}, or in another unit there:", markup=False)
        for key in keys:
            console.print(f"  {key.case} / {key.shape} / {key.dtype} / {key.provider}", markup=False)
