"""Speed of the engine on this machine: `python -m kvcompress.bench.engine_speed [--quick] [--cases ...]`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final

import torch
import typer

from kvcompress.bench.engine_decode import decode_step
from kvcompress.bench.engine_end_to_end import end_to_end
from kvcompress.bench.engine_prefill import compaction, compression, scoring, selection
from kvcompress.bench.measure import CaseRow, Clock
from kvcompress.bench.results_file import RESULTS, environment, results, write_results

CASES: Final[Mapping[str, Callable[..., list[CaseRow]]]] = MappingProxyType(
    {
        "decode": decode_step,
        "scoring": scoring,
        "compression": compression,
        "selection": selection,
        "compaction": compaction,
        "end_to_end": end_to_end,
    }
)


def run_cases(names: list[str], *, quick: bool, clock: Clock = time.perf_counter) -> list[CaseRow]:
    """Runs cases one after the other.

    Args:
        names: keys of :data:`CASES`.
        quick: tiny sizes, to see that everything works; the figures mean nothing.
        clock: seconds.

    Raises:
        ValueError: no such case.
    """
    unknown = sorted(set(names) - set(CASES))
    if unknown:
        raise ValueError(f"cases must be among {', '.join(CASES)}; got {', '.join(unknown)}")
    rows: list[CaseRow] = []
    with torch.inference_mode():
        for name in names:
            rows += CASES[name](quick=quick, clock=clock)
    return rows


def describe(row: CaseRow) -> str:
    """One line on one contender, for the terminal."""
    memory = "" if row["peak_memory_bytes"] is None else f"  peak {row['peak_memory_bytes'] / 2**20:8.2f} MiB"
    error = "" if row["max_error"] is None else f"  max error {row['max_error']:.1e}"
    return (
        f"{row['case']:16} {row['provider']:24} {row['median']:10.3f} {row['unit']} "
        f"[{row['q20']:.3f}, {row['q80']:.3f}]  x{row['ratio']:.3f} of {row['ratio_to']}{memory}{error}"
    )


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes: does it run? Writes only with --out.")] = False,
    cases: Annotated[str, typer.Option(help="Which cases, with commas.")] = ",".join(CASES),
    out: Annotated[Path | None, typer.Option(help="The JSON file to write.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of torch; 0 leaves its own choice.")] = 0,
    cpu_time: Annotated[
        bool, typer.Option("--cpu-time", help="One thread, and its processor time: for a busy machine.")
    ] = False,
) -> None:
    """Time the engine's steps against what they replace."""
    if threads or cpu_time:
        torch.set_num_threads(1 if cpu_time else threads)
    made_in = environment()
    clock = time.process_time if cpu_time else time.perf_counter
    rows = run_cases(cases.split(","), quick=quick, clock=clock)
    for row in rows:
        typer.echo(describe(row))
    target = out if quick else out or RESULTS / "engine_cpu.json"
    notes = {"clock": "processor time" if cpu_time else "wall time"}
    if target is not None:
        write_results(results(rows, made_in=made_in, notes=notes), target)
        typer.echo(f"written: {target}")


if __name__ == "__main__":
    typer.run(main)
