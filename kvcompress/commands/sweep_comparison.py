"""The work of ``kvcompress bench compare`` on the rows of sweeps."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from kvcompress.commands.failures import warn

if TYPE_CHECKING:
    from kvcompress.bench.sweep.compare_rows import CellChange, CellKey, RowsComparison

SUFFIX = ".jsonl"


def compare_sweeps(first: Path, second: Path, threshold: float, *, as_json: bool) -> bool:
    """Compares two sweeps and prints the outcome.

    Args:
        first: rows of the sweep before.
        second: rows of the sweep after.
        threshold: growth of the bytes that matters.
        as_json: print one JSON object instead of lines.

    Returns:
        Whether a score fell beyond its interval, or a cell holds more bytes.

    Raises:
        ValueError: a file does not hold rows, or they have nothing in common.
    """
    from kvcompress.bench.sweep.compare_rows import compare_rows
    from kvcompress.bench.sweep.rows_file import read_rows

    found = compare_rows(read_rows(first), read_rows(second), threshold)
    if found.differences:
        pairs = (f"{name} {before} / {after}" for name, (before, after) in found.differences.items())
        warn(f"the sweeps were not made under the same conditions: {', '.join(pairs)}")
    if as_json:
        sys.stdout.write(json.dumps(found.as_json(), allow_nan=False) + "\n")
    else:
        _show(found, Console(highlight=False), names=(str(first), str(second)))
    return bool(found.regressions)


def _show(found: RowsComparison, console: Console, names: tuple[str, str]) -> None:
    """Prints the cells whose score or bytes changed, then what only one sweep has."""
    for change in found.changes:
        if change.regressed or change.better:
            console.print(_line(change), markup=False, soft_wrap=True)
    for keys, name in ((found.only_first, names[0]), (found.only_second, names[1])):
        _show_single(keys, name, console)
    worse, larger = sum(change.worse for change in found.changes), sum(change.larger for change in found.changes)
    console.print(
        f"{len(found.changes)} cells compared: {worse} worse and {sum(change.better for change in found.changes)} "
        f"better beyond the 95 % interval of the difference, {larger} with more bytes by more than "
        f"{found.threshold:.1%}",
        markup=False,
    )


def _line(change: CellChange) -> str:
    words = (("WORSE", change.worse), ("LARGER", change.larger), ("better", change.better))
    verdict = " and ".join(word for word, holds in words if holds)
    gap = change.score
    return (
        f"{verdict}: {change.before.cell}: score {100 * change.before.score:.1f} -> {100 * change.after.score:.1f} % "
        f"({100 * gap.mean:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]), bytes x {change.bytes_ratio:.3f}, "
        f"tokens/s x {change.speed_ratio:.2f}"
    )


def _show_single(keys: Sequence[CellKey], name: str, console: Console) -> None:
    if keys:
        first = ", ".join(f"{field} {value}" for field, value in keys[0]._asdict().items() if value is not None)
        console.print(f"only in {name}: {len(keys)} cells, the first: {first}", markup=False, soft_wrap=True)
