"""The work of ``kvcompress bench kernels``."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import typer
from rich.console import Console
from rich.table import Table

from kvcompress.commands.failures import CommandError, warn
from kvcompress.commands.figures import three_digits
from kvcompress.commands.loading import choose_place
from kvcompress.commands.throughput import numbers

if TYPE_CHECKING:
    from kvcompress.bench.kernels_bench.goals import Goal, KernelRow
    from kvcompress.bench.kernels_bench.kernel_speed import CaseResult, KernelBenchmark, KernelRun, LeftOut
    from kvcompress.bench.kernels_bench.layer_shapes import LayerShape

SCHEMA: Final = "kvcompress.bench.kernels/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The command's options as they were given; see there."""

    operations: str | None
    shapes: str | None
    contexts: str | None
    batches: str | None
    backend: str
    device: str
    dtype: str
    quick: bool
    cpu_time: bool
    out: Path | None


def run_request(request: Request, *, as_json: bool) -> bool:
    """Times what was asked for, prints it, and writes it.

    Args:
        request: what to time.
        as_json: print the file's content instead of tables.

    Returns:
        Whether a contender gave a wrong result.

    Raises:
        CommandError: options that do not go together, or a file that cannot be written.
        ValueError: an unknown operation, shape or backend.
    """
    from kvcompress.bench.kernels_bench.goals import goals
    from kvcompress.bench.kernels_bench.kernel_speed import KernelRun, default_file
    from kvcompress.bench.results_file import environment, results, write_results

    # Read at the first use of torch's profiler, which counts memory and would write lines of its own.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    benchmark = _benchmark(request)
    if request.cpu_time:
        torch.set_num_threads(1)
    made_in = environment()
    target = request.out or (None if request.quick else default_file(_device_name(benchmark)))
    _check_target(target)
    printer = _Printer(Console(highlight=False), quiet=as_json)
    done: list[CaseResult] = []

    def content(*, complete: bool) -> dict[str, Any]:
        found = KernelRun.of(done)
        notes = {**_notes(request, benchmark, found, goals(found.rows)), "complete": complete}
        return results(found.rows, made_in=made_in, schema=SCHEMA, notes=notes)

    def take(result: CaseResult) -> None:
        done.append(result)
        printer.show(result)
        if target is not None:  # a later case may fail, or the time be over
            write_results(content(complete=False), target)

    found = benchmark.run(take)
    printer.end(goals(found.rows))
    if target is not None:
        write_results(content(complete=True), target)
        typer.echo(f"written: {target}", err=as_json)
    if as_json:
        sys.stdout.write(json.dumps(content(complete=True), allow_nan=False) + "\n")
    return any(entry.wrong for entry in found.left_out)


def _notes(request: Request, benchmark: KernelBenchmark, found: KernelRun, judged: list[Goal]) -> dict[str, Any]:
    """What the file says beside environment and rows."""
    clock = "processor time" if request.cpu_time else "wall time"
    return {
        "device": _device_name(benchmark),
        "clock": "device events" if benchmark.device.type == "cuda" else clock,
        "quick": request.quick,
        "copy_bandwidth_bytes_per_second": found.bandwidth,
        "goals": [goal._asdict() for goal in judged],
        "left_out": [entry._asdict() for entry in found.left_out],
    }


def _benchmark(request: Request) -> KernelBenchmark:
    from kvcompress.bench.kernels_bench.kernel_speed import OPERATIONS, KernelBenchmark, our_backends

    place = choose_place(request.device, request.dtype)
    gpu = place.device.type == "cuda"
    if request.cpu_time and gpu:
        raise CommandError("--cpu-time is for the CPU; the run is on a GPU, timed by its events. Leave it out.")
    dtype = place.dtype or (torch.bfloat16 if gpu else torch.float32)
    operations = _names(request.operations) or list(OPERATIONS)
    unknown = sorted(set(operations) - set(OPERATIONS))
    if unknown:
        raise CommandError(f"--operations must be among {', '.join(OPERATIONS)}; got {', '.join(unknown)}")
    backends, skipped = our_backends(request.backend, place.device, dtype)
    return KernelBenchmark(
        operations=operations,
        shapes=_shapes(request, gpu=gpu),
        dtype=dtype,
        device=place.device,
        backends=backends,
        skipped=skipped,
        quick=request.quick,
        clock=time.process_time if request.cpu_time else time.perf_counter,
    )


def _shapes(request: Request, *, gpu: bool) -> list[LayerShape]:
    """The layers that were asked for."""
    from kvcompress.bench.kernels_bench.layer_shapes import default_names, shapes_of

    sizes = {"contexts": request.contexts, "batches": request.batches}
    given = {name: numbers(f"--{name}", listed) for name, listed in sizes.items() if listed is not None}
    if given and request.quick:
        raise CommandError(f"--quick has sizes of its own; leave --{' and --'.join(given)} out.")
    return shapes_of(_names(request.shapes) or default_names(gpu=gpu), gpu=gpu, quick=request.quick, **given)


class _Printer:
    """Prints each case when it is done; reasons that repeat are given once."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self.console, self.quiet = console, quiet
        self.left_out: dict[tuple[str, str], list[str]] = {}

    def show(self, result: CaseResult) -> None:
        """Prints a table of the contenders of a case."""
        for entry in result.left_out:
            self._note(entry)
        if self.quiet or not result.rows:
            return
        first = result.rows[0]
        self.console.print(f"{first['case']}: {first['shape']}, {first['dtype']}", markup=False)
        self.console.print(_table(result.rows))

    def end(self, judged: list[Goal]) -> None:
        """Prints who was not timed, and the goals."""
        if self.quiet:
            return
        for (provider, reason), cases in self.left_out.items():
            self.console.print(f"not timed: {provider}: {reason} ({', '.join(dict.fromkeys(cases))})", markup=False)
        for goal in judged:
            verdict = "met" if goal.met else "MISSED"
            figures = f"{three_digits(goal.got)}, wanted {three_digits(goal.wanted)}: {verdict}"
            self.console.print(f"goal: {goal.case}, {goal.shape}: {goal.goal} {figures}", markup=False)

    def _note(self, entry: LeftOut) -> None:
        self.left_out.setdefault((entry.provider, entry.reason), []).append(entry.case)
        if entry.wrong:
            warn(f"{entry.provider} in case {entry.case!r}: {entry.reason}")


def _table(rows: list[KernelRow]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 2))
    table.add_column("provider")
    for heading in ("ms, median [20 %, 80 %]", "times", "of copy", "peak MiB", "error"):
        table.add_column(heading.replace("[", "\\["), justify="right")
    for row in rows:
        low, middle, high = (three_digits(value) for value in (row["q20"], row["median"], row["q80"]))
        share, peak, error = row["share_of_bandwidth"], row["peak_memory_bytes"], row["max_error"]
        table.add_row(
            row["provider"],
            f"{middle} \\[{low}, {high}]",  # rich would read [..] as a style
            three_digits(row["ratio"]),
            "" if share is None else f"{share:.1%}",
            "" if peak is None else three_digits(peak / 2**20),
            "" if error is None else f"{error:.1e}",
        )
    return table


def _names(given: str | None) -> list[str]:
    return [] if given is None else [name.strip() for name in given.split(",") if name.strip()]


def _device_name(benchmark: KernelBenchmark) -> str:
    return torch.cuda.get_device_name(benchmark.device) if benchmark.device.type == "cuda" else "cpu"


def _check_target(target: Path | None) -> None:
    """A file that cannot be written is better known before minutes of timing."""
    if target is None:
        return
    if target.is_dir():
        raise CommandError(f"--out must be a file; got the folder {target}. Give a name in it.")
    existing = next(folder for folder in (target.parent, *target.resolve().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise CommandError(f"--out must lie in a folder that can be written; got {target}. Give another file.")
