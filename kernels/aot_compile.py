"""Compiles kernels for targets that are not there. Nothing runs: Triton's compiler needs no GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from kvcompress.kernels.aot_job import Job, source_of
from kvcompress.kernels.aot_resources import Resources, resources_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Result of a job: resources, or the error that kept it from compiling.

    Attributes:
        job: what was compiled.
        resources: what it needs; None where it does not compile.
        error: why not.
        seconds: that the compile took.
        recorded: whether the resources are those of an earlier, equal compile.
    """

    job: Job
    resources: Resources | None
    error: str = ""
    seconds: float = 0.0
    recorded: bool = False


def compiled(job: Job) -> Any:
    """Compiles a job; returns Triton's compiled kernel.

    Raises:
        ValueError: signature and constants do not cover the kernel's arguments, each once.
        Exception: whatever Triton raises.
    """
    import triton

    source, target, options = source_of(job)
    return triton.compile(source, target=target, options=options)


def compile_job(job: Job) -> Outcome:
    """Compiles a job in this process; an error of the compiler becomes part of the outcome."""
    start = time.perf_counter()
    try:
        return Outcome(job=job, resources=resources_of(compiled(job)), seconds=time.perf_counter() - start)
    except Exception as error:  # the compiler may raise anything, and the check goes on with the other jobs
        return Outcome(job=job, resources=None, error=_one_line(error), seconds=time.perf_counter() - start)


def compile_all(jobs: Sequence[Job], processes: int, progress: Callable[[int, int], None]) -> list[Outcome]:
    """Compiles jobs, each distinct one once.

    Args:
        jobs: what to compile; those with equal identity share one compile, and the first of them its seconds.
        processes: 1 compiles in this process; more are forked from it, so that imports are done once.
        progress: called with the number of compiles done and that of all.

    Returns:
        One outcome per job, in the order of the jobs.
    """
    identities = [job.identity for job in jobs]
    distinct: dict[tuple[object, ...], Job] = {}
    for identity, job in zip(identities, jobs, strict=True):
        distinct.setdefault(identity, job)
    # The slow ones first: no process is then left alone with one of them at the end.
    ordered = sorted(distinct, key=lambda identity: -_weight(distinct[identity]))
    work = [distinct[identity] for identity in ordered]
    found: dict[tuple[object, ...], Outcome] = {}
    for done, (index, outcome) in enumerate(_outcomes(work, processes), start=1):
        found[ordered[index]] = outcome
        progress(done, len(work))
    outcomes = []
    for identity, job in zip(identities, jobs, strict=True):
        first = found[identity]
        seconds = first.seconds if first.job is job else 0.0
        outcomes.append(Outcome(job=job, resources=first.resources, error=first.error, seconds=seconds))
    return outcomes


_WORK: list[Job] = []  # what forked processes inherit: a kernel cannot be pickled


def _compile_index(index: int) -> tuple[Resources | None, str, float]:
    outcome = compile_job(_WORK[index])
    return outcome.resources, outcome.error, outcome.seconds


def _outcomes(work: list[Job], processes: int) -> Iterator[tuple[int, Outcome]]:
    """Yields (index, outcome) as compiles end."""
    if processes == 1:
        yield from ((index, compile_job(job)) for index, job in enumerate(work))
        return
    _WORK[:] = work
    crashed = []
    for index, outcome in _pooled(range(len(work)), min(processes, max(len(work), 1))):
        if outcome is None:
            crashed.append(index)
        else:
            yield index, outcome
    # A compiler that dies takes its pool along: what was left then goes on alone, each in a process of its own.
    for index in crashed:
        for _, outcome in _pooled([index], 1):
            dead = Outcome(job=work[index], resources=None, error="the compiler's process died")
            yield index, outcome or dead


def _pooled(indices: Sequence[int], processes: int) -> Iterator[tuple[int, Outcome | None]]:
    """Yields (index, outcome), None where the process died."""
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        futures = {pool.submit(_compile_index, index): index for index in indices}
        for future in as_completed(futures):
            index = futures[future]
            try:
                resources, error, seconds = future.result()
            except BrokenProcessPool:
                yield index, None
            else:
                yield index, Outcome(job=_WORK[index], resources=resources, error=error, seconds=seconds)


def _weight(job: Job) -> int:
    """A rough measure of how long a compile takes: sizes of the tile; float32 products unroll."""
    sizes = sum(value for value in job.configuration.constants.values() if type(value) is int)
    return sizes * (4 if next(iter(job.configuration.signature.values()), "") == "*fp32" else 1)


def _one_line(error: BaseException) -> str:
    """First and last line of the root of an error: Triton's messages have the place first and the reason last."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ends = lines if len(lines) < 3 else [lines[0], lines[-1]]
    return ": ".join([type(error).__name__, *ends])[:500]
