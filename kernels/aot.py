"""``make aot``: compiles every configuration of every Triton kernel for every target, without a GPU.

It fails where a kernel does not compile, spills registers, takes more shared memory than a target has, or needs more
registers or shared memory than the budget beside this file (``aot_budget.json``) says, and where a kernel has no
configuration at all. Triton's cache makes a second run quick, and so does ``--recorded`` on a machine without one: it
compiles what has changed since the last ``--update-budget``, and a sample of the rest.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from kvcompress.kernels.aot_budget import (
    BUDGET,
    over_budget,
    over_limits,
    read_budget,
    stale_entries,
    updated,
    write_budget,
)
from kvcompress.kernels.aot_compile import Outcome
from kvcompress.kernels.aot_coverage import ambiguous, configurations_of, jobs_of, operations, uncovered
from kvcompress.kernels.aot_job import Job
from kvcompress.kernels.aot_record import (
    RECORD,
    compile_the_rest,
    contradictions,
    keys_of,
    read_record,
    recorded,
    write_record,
)
from kvcompress.kernels.aot_report import folded, json_report, markdown_table, text_table
from kvcompress.kernels.dispatch import interpreting
from kvcompress.kernels.tiles import ARCHITECTURES

REPORT_EVERY = 100  # compiles


def why_not_here() -> str | None:
    """Why kernels cannot be compiled in this process; None where they can."""
    if find_spec("triton") is None:
        return "the package triton is not installed; install it (Linux: pip install triton)"
    if interpreting():
        return "TRITON_INTERPRET=1 makes kernels plain Python, which cannot be compiled; unset it"
    return None


def usable_cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def collect(chosen: Sequence[str], targets: Sequence[str]) -> tuple[list[Job], list[str]]:
    """The jobs of operations and targets, and what is wrong with their configurations."""
    sources = operations()
    jobs: list[Job] = []
    problems: list[str] = []
    for operation in chosen:
        for target in targets:
            try:
                jobs += jobs_of(configurations_of(operation, target), target)
            except ValueError as error:
                problems.append(f"{operation} on {target}: {error}")
    problems += [f"{name}: two different configurations have this name" for name in ambiguous(jobs)]
    problems += [f"{name}: no configuration compiles this kernel" for name in uncovered(sources, jobs, chosen)]
    return jobs, list(dict.fromkeys(problems))


def renewed(outcomes: Sequence[Outcome], keys: Sequence[str], version: str, *, whole: bool) -> list[str]:
    """Writes budget and record.

    Args:
        outcomes: of the run.
        keys: of their jobs.
        version: of Triton.
        whole: the run compiled everything.

    Returns:
        What is wrong, and nothing is written then.
    """
    try:
        write_budget(updated(read_budget(), outcomes, version, whole=whole))
    except ValueError as error:
        return [str(error)]
    write_record({**({} if whole else read_record()), **recorded(outcomes, keys)})
    _say(f"aot: wrote {BUDGET.name} and {RECORD.name}")
    return []


def held_to_budget(outcomes: Sequence[Outcome], version: str, *, whole: bool) -> list[str]:
    """Compares outcomes with the budget.

    Args:
        outcomes: of the run.
        version: of Triton.
        whole: the run compiled everything.

    Returns:
        One line per excess.
    """
    budget = read_budget()
    if budget.triton and not budget.binds(version):
        _say(f"aot: the budget is of Triton {budget.triton}; Triton {version} is held to the hard limits only")
        return []
    stale = stale_entries(outcomes, budget) if whole else []
    if stale:
        _say(
            f"aot: {len(stale)} cases of the budget are compiled no more (--update-budget drops them): {stale[0]}, ..."
        )
    return list(over_budget(outcomes, budget))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the check.

    Args:
        arguments: of the command line; None takes the process's own.

    Returns:
        0 where all is well, 1 where a kernel fails, 2 where kernels cannot be compiled here.
    """
    options = _parser().parse_args(arguments)
    reason = why_not_here()
    if reason is not None:
        sys.stderr.write(f"aot: {reason}\n")
        return 2
    import triton

    targets = options.target or list(ARCHITECTURES)
    chosen = options.operation or list(operations())
    start = time.perf_counter()
    jobs, problems = collect(chosen, targets)
    record = read_record() if options.recorded else {}
    keys = keys_of(jobs) if options.recorded or options.update_budget else [""] * len(jobs)
    outcomes = compile_the_rest(jobs, keys, record, options.jobs, _progress)
    problems += over_limits(outcomes)
    problems += contradictions(outcomes, keys, record)
    whole = not (options.target or options.operation)
    if options.update_budget:
        problems += renewed(outcomes, keys, triton.__version__, whole=whole)
    else:
        problems += held_to_budget(outcomes, triton.__version__, whole=whole)
    _say(text_table(outcomes))
    if options.table:
        options.table.write_text(markdown_table(outcomes, triton.__version__, len(problems)), encoding="utf-8")
    if options.json:
        options.json.write_text(json_report(outcomes, triton.__version__, problems), encoding="utf-8")
    for problem in folded(problems):
        sys.stderr.write(f"aot: {problem}\n")
    compiles = len({outcome.job.identity for outcome in outcomes if not outcome.recorded})
    taken = sum(outcome.recorded for outcome in outcomes)
    _say(
        f"aot: Triton {triton.__version__}, {len(jobs)} variants in {compiles} compiles, {taken} as recorded, "
        f"{len(problems)} problems, {time.perf_counter() - start:.0f} s with {options.jobs} processes"
    )
    return 1 if problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kvcompress.kernels.aot", description=__doc__)
    parser.add_argument("--target", action="append", choices=ARCHITECTURES, help="only this GPU; may be repeated")
    parser.add_argument("--operation", action="append", choices=operations(), help="only this one; may be repeated")
    parser.add_argument("--jobs", type=_positive, default=usable_cores(), help="processes (default: usable cores)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--recorded", action="store_true", help=f"take from {RECORD.name} what nothing has changed since it was written"
    )
    which.add_argument(
        "--update-budget", action="store_true", help=f"write {BUDGET.name} and {RECORD.name} from what is found"
    )
    parser.add_argument("--table", type=Path, metavar="FILE.md", help="write a table in Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _progress(done: int, total: int) -> None:
    if done % REPORT_EVERY == 0 and done < total:
        _say(f"aot: {done} of {total} compiled")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
