"""Finds the tiles of the attention kernels on this GPU: `python -m kvcompress.bench.tune_tiles`.

Every candidate is checked against the reference before it is timed. What wins stands in ``kernels/tiles.json`` and goes
before the rules of ``kernels/tiles.py``; the medians stand beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, NamedTuple

import torch
import typer

from kvcompress.bench.candidate_tiles import candidates, rule_of, using
from kvcompress.bench.compiled_tiles import Candidate, CompilingProcesses, default_jobs, failure
from kvcompress.bench.kernels_bench.device_timing import GpuSampler
from kvcompress.bench.measure import Case, Contender, Sampler, WrongResultError, measure
from kvcompress.bench.results_file import environment
from kvcompress.bench.tiles_file import content, read_tiles, write_tiles
from kvcompress.bench.tunable_kernels import CASES, Tunable, tunable
from kvcompress.kernels import tiles
from kvcompress.kernels.tiles import Tile

# A tile has to be faster than the rule's by more than this: within it, which one wins is a matter of luck.
MARGIN: Final = 0.03
_REPEATS: Final = 10


class Timed(NamedTuple):
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


def choose(found: Sequence[Timed], rule: Tile, margin: float = MARGIN) -> Timed:
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
    target: Tunable,
    rule: Tile,
    tried: Iterable[Tile],
    *,
    sampler: Sampler | None,
    repeats: int = _REPEATS,
    failures: Mapping[Tile, str] = MappingProxyType({}),
) -> Outcome:
    """Tries tiles one after the other.

    Args:
        target: the kernel, how it is run with a tile, and how its result is judged.
        rule: the tile without tuning.
        tried: what to try.
        sampler: the device's clock; None: the wall clock.
        repeats: rounds of each.
        failures: tiles that are known not to work, and why; they are not tried.

    Raises:
        ValueError: no tile gave a right result.
    """
    found: list[Timed] = []
    dropped: list[Dropped] = []
    for tile in tried:
        known = failures.get(tile)
        outcome = _attempt(target, tile, sampler, repeats) if known is None else Dropped(tile, known)
        if isinstance(outcome, Timed):
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


def _attempt(target: Tunable, tile: Tile, sampler: Sampler | None, repeats: int) -> Timed | Dropped:
    """Checks and times one tile."""
    contender = Contender(provider="candidate", run=target.run, error=target.error, tolerance=target.tolerance, calls=2)
    case = Case(name=target.key, shape=target.label, dtype=target.dtype, ratio_to="candidate")
    try:
        with using(target.key, tile):
            (row,) = measure(case, [contender], repeats=repeats, sampler=sampler)
    except WrongResultError as error:
        return Dropped(tile, str(error))
    except Exception as error:  # too large for the device, or refused by a compiler: their types are their own
        return Dropped(tile, failure(error))
    return Timed(tile, row["median"])


def run_all(
    names: Sequence[str],
    device: torch.device,
    seconds: float,
    compiling: CompilingProcesses,
    say: Callable[[str], object] = lambda line: None,
) -> list[Outcome]:
    """Tunes the layers named, until the time is up.

    Args:
        names: keys of :data:`CASES`.
        device: a GPU.
        seconds: no kernel is begun after that.
        compiling: compiles a kernel's candidates before any of them is timed, alone on the device.
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
            tried = list(candidates(kernel, group=target.group, window=target.window, rule=rule))
            failures = compiling.failures([Candidate(kernel, name, one) for one in tried])
            outcomes.append(tune(target, rule, tried, sampler=sampler, failures=failures))
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
    jobs: Annotated[
        int, typer.Option(min=1, help="Processes that compile; 1: none, tiles are compiled when they are timed.")
    ] = default_jobs(),
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
    with CompilingProcesses(jobs) as compiling:
        outcomes = run_all(names, torch.device("cuda"), time_limit, compiling, typer.echo)
    write_tiles(out, content(outcomes, made_in, read_tiles(out)))
    typer.echo(f"written: {out}")


if __name__ == "__main__":
    typer.run(main)
