"""Finds the tiles of the attention kernels on this GPU: `python -m kvcompress.bench.tune_tiles`.

Every candidate is checked against the reference before it is timed. What wins stands in ``kernels/tiles.json`` and goes
before the rules of ``kernels/tiles.py``; the medians stand beside it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import torch
import typer

from kvcompress.analysis.files import replace_text
from kvcompress.bench.kernels_bench.device_timing import GpuSampler
from kvcompress.bench.measure import Case, Contender, Sampler, WrongResultError, measure
from kvcompress.bench.results_file import environment
from kvcompress.bench.tunable_kernels import CASES, Tunable, tunable
from kvcompress.commands.failures import first_line
from kvcompress.kernels import tiles
from kvcompress.kernels.tiles import Tile, power_of_two

SCHEMA: Final = "kvcompress.tiles/1"
# A tile has to be faster than the rule's by more than this: within it, which one wins is a matter of luck.
MARGIN: Final = 0.03
# Each takes one or two seconds to compile; a kernel should be done within a minute.
_BLOCKS, _WARPS, _STAGES = (32, 64, 128), (4, 8), (2, 3)
_MOST_ROWS: Final = 128
_REPEATS: Final = 10


class Candidate(NamedTuple):
    """A tile that gave the right result, and the milliseconds of its rounds."""

    tile: Tile
    median: float


class Dropped(NamedTuple):
    """A tile that did not, and why."""

    tile: Tile
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of tuning one kernel for one layer.

    Attributes:
        key: name in ``tiles.json``.
        chosen: the tile.
        median: its milliseconds.
        rule_median: those of the tile that the rule gives; None where that one failed.
        tried: tiles that were timed.
        dropped: tiles that were not.
    """

    key: str
    chosen: Tile
    median: float
    rule_median: float | None
    tried: int
    dropped: list[Dropped]


def candidates(kernel: str, *, group: int, window: int, rule: Tile) -> Iterator[Tile]:
    """Tiles worth a try, the rule's first.

    Args:
        kernel: ``"window_lse"``, ``"window_scores"`` or ``"decode_attend"``.
        group: query heads per kv head.
        window: queries per head.
        rule: what is taken without tuning.
    """
    yield rule
    if kernel == "decode_attend":
        heads = [rule.heads]  # all heads of a group read the same keys; one read is what the kernel is about
    else:
        most = max(1, min(power_of_two(group), _MOST_ROWS // power_of_two(window, 16)))
        heads = [most, most // 2] if most > 1 else [1]
    for block_n, count, warps, stages in product(_BLOCKS, heads, _WARPS, _STAGES):
        tile = Tile(block_n=block_n, heads=count, warps=warps, stages=stages)
        if tile != rule:
            yield tile


def choose(found: Sequence[Candidate], rule: Tile, margin: float = MARGIN) -> Candidate:
    """The fastest candidate; the rule's tile where nothing is faster by more than the margin.

    Args:
        found: what was timed.
        rule: the tile without tuning.
        margin: fraction.

    Raises:
        ValueError: nothing was timed.
    """
    if not found:
        raise ValueError("no candidate gave a right result: the kernel is broken here, and no tile helps")
    # Among equal times the smaller tile: it leaves more room for others.
    best = min(found, key=lambda one: (one.median, one.tile.warps, one.tile.stages, one.tile.block_n, one.tile.heads))
    ruled = next((one for one in found if one.tile == rule), None)
    if ruled is not None and best.median * (1 + margin) >= ruled.median:
        return ruled
    return best


def tune(
    target: Tunable, rule: Tile, tried: Iterator[Tile], *, sampler: Sampler | None, repeats: int = _REPEATS
) -> Outcome:
    """Tries tiles one after the other.

    Args:
        target: the kernel, how it is run with a tile, and how its result is judged.
        rule: the tile without tuning.
        tried: what to try.
        sampler: the device's clock; None: the wall clock.
        repeats: rounds of each.

    Raises:
        ValueError: no tile gave a right result.
    """
    found: list[Candidate] = []
    dropped: list[Dropped] = []
    for tile in tried:
        outcome = _attempt(target, tile, sampler, repeats)
        if isinstance(outcome, Candidate):
            found.append(outcome)
        else:
            dropped.append(outcome)
    best = choose(found, rule)
    ruled = next((one.median for one in found if one.tile == rule), None)
    return Outcome(
        key=target.key,
        chosen=best.tile,
        median=best.median,
        rule_median=ruled,
        tried=len(found),
        dropped=dropped,
    )


def _attempt(target: Tunable, tile: Tile, sampler: Sampler | None, repeats: int) -> Candidate | Dropped:
    """Checks and times one tile."""
    contender = Contender(provider="candidate", run=target.run, error=target.error, tolerance=target.tolerance, calls=2)
    case = Case(name=target.key, shape=target.label, dtype=target.dtype, ratio_to="candidate")
    try:
        with using(target.key, tile):
            (row,) = measure(case, [contender], repeats=repeats, sampler=sampler)
    except WrongResultError as error:
        return Dropped(tile, str(error))
    except Exception as error:  # too large for the device, or refused by a compiler: their types are their own
        return Dropped(tile, f"{type(error).__name__}: {first_line(error)}"[:200])
    return Candidate(tile, row["median"])


@contextmanager
def using(key: str, tile: Tile) -> Iterator[None]:
    """Has the launchers take a tile as if it stood in ``tiles.json``."""
    measured = tiles._measured()
    before = measured.get(key)
    measured[key] = asdict(tile)
    try:
        yield
    finally:
        if before is None:
            del measured[key]
        else:
            measured[key] = before


def rule_of(target: Tunable) -> Tile:
    """The tile that the rules give, whatever ``tiles.json`` says."""
    measured = tiles._measured()
    before = measured.pop(target.key, None)
    try:
        return target.rule()
    finally:
        if before is not None:
            measured[target.key] = before


def content(outcomes: Sequence[Outcome], made_in: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """What is written: the new tiles, and the earlier ones of other kernels, layers and architectures.

    Args:
        outcomes: of this run.
        made_in: its environment.
        earlier: what the file held, or nothing.
    """
    tuned = {outcome.key: asdict(outcome.chosen) for outcome in outcomes}
    medians = {
        outcome.key: {"ms": outcome.median, "rule_ms": outcome.rule_median, "device": made_in["device"]}
        for outcome in outcomes
    }
    return {
        "schema": SCHEMA,
        "device": made_in["device"],
        "driver": made_in["driver"],
        "triton": made_in["triton"],
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "tiles": dict(sorted({**earlier.get("tiles", {}), **tuned}.items())),
        "medians": dict(sorted({**earlier.get("medians", {}), **medians}.items())),
    }


def write_tiles(path: Path, new: Mapping[str, Any]) -> None:
    """Puts the tiles in the file's place in one step."""
    replace_text(path, json.dumps(new, indent=2, allow_nan=False) + "\n")


def read_tiles(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where there is none."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def run_all(
    names: Sequence[str], device: torch.device, seconds: float, say: Callable[[str], object] = lambda line: None
) -> list[Outcome]:
    """Tunes the layers named, until the time is up.

    Args:
        names: keys of :data:`CASES`.
        device: a GPU.
        seconds: no kernel is begun after that.
        say: takes a line on each outcome.
    """
    sampler = GpuSampler(device, queued=True)
    end = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    for name in names:
        for kernel in CASES[name].kernels:
            if time.monotonic() > end:
                say(f"{name}/{kernel}: left out, the time is up")
                continue
            target = tunable(kernel, CASES[name], device)
            rule = rule_of(target)
            tried = candidates(kernel, group=target.group, window=target.window, rule=rule)
            outcomes.append(tune(target, rule, tried, sampler=sampler))
            say(describe(outcomes[-1], rule))
    return outcomes


def describe(outcome: Outcome, rule: Tile) -> str:
    """One line on what was found."""
    kept = "the rule's tile" if outcome.chosen == rule else str(outcome.chosen)
    before = "wrong or impossible" if outcome.rule_median is None else f"{outcome.rule_median:.4f} ms"
    return (
        f"{outcome.key}: {kept}, {outcome.median:.4f} ms; the rule's: {before}; "
        f"{outcome.tried} timed, {len(outcome.dropped)} dropped"
    )


def main(
    cases: Annotated[str, typer.Option(help=f"Which, with commas: {', '.join(CASES)}.")] = ",".join(CASES),
    out: Annotated[Path, typer.Option(help="The file to write.", show_default=False)] = tiles.MEASURED,
    time_limit: Annotated[float, typer.Option(help="Seconds; no kernel is begun after that.")] = 540,
) -> None:
    """Find the fastest tiles of the attention kernels on this GPU."""
    names = cases.split(",")
    unknown = sorted(set(names) - set(CASES))
    if unknown:
        typer.echo(f"tune_tiles: --cases must be among {', '.join(CASES)}; got {', '.join(unknown)}", err=True)
        raise typer.Exit(2)
    if not torch.cuda.is_available():
        typer.echo(
            "tune_tiles: needs a CUDA device, and torch sees none; without it the rules' tiles are used", err=True
        )
        raise typer.Exit(2)
    made_in = environment()
    outcomes = run_all(names, torch.device("cuda"), time_limit, typer.echo)
    write_tiles(out, content(outcomes, made_in, read_tiles(out)))
    typer.echo(f"written: {out}")


if __name__ == "__main__":
    typer.run(main)
