"""Compiles the tuner's candidates in several processes at once; what they leave is Triton's cache on disk."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import cache as once
from types import TracebackType
from typing import Final, NamedTuple

import torch

from kvcompress.bench.candidate_tiles import using
from kvcompress.bench.tunable_kernels import CASES, Tunable, tunable
from kvcompress.commands.failures import first_line
from kvcompress.kernels.tiles import Tile

MOST_JOBS: Final = 8  # each has the GPU's libraries in memory, half a gigabyte and more
# Divisible by 16 like the layer's own length: Triton compiles the same code for both.
_FEW_TOKENS: Final = 2048


class Candidate(NamedTuple):
    """A tile to compile: of which kernel, on which layer of :data:`CASES`."""

    kernel: str
    case: str
    tile: Tile


# Compiles a candidate; why that failed, or None. Processes import it by name, so it stands at the top of a module.
Compile = Callable[[Candidate], str | None]


def default_jobs() -> int:
    """Processes that compile where nobody says how many: one per usable processor, at most :data:`MOST_JOBS`."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MOST_JOBS)


def compile_candidate(candidate: Candidate) -> str | None:
    """Runs a kernel once with a tile, on a short layer.

    Returns:
        Why that failed; None: it is compiled.
    """
    try:
        target = _short(candidate.kernel, candidate.case)
        with using(target.key, candidate.tile):
            target.run()
        torch.cuda.synchronize()
    except Exception as error:  # too large for the device, or refused by a compiler: their types are their own
        return failure(error)
    return None


def failure(error: Exception) -> str:
    """One line on why a tile cannot be used."""
    return f"{type(error).__name__}: {first_line(error)}"[:200]


class CompilingProcesses:
    """Processes that compile candidates, and idle between two kernels: nothing of theirs runs while one is timed.

    Args:
        jobs: how many; 1: nothing is compiled ahead, and each candidate is when it is first run.
        compile_one: compiles one.
    """

    def __init__(self, jobs: int, compile_one: Compile = compile_candidate) -> None:
        self._jobs, self._compile = jobs, compile_one
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> CompilingProcesses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def failures(self, tried: Sequence[Candidate]) -> dict[Tile, str]:
        """Compiles candidates of one kernel and returns once all are done.

        Args:
            tried: what to compile.

        Returns:
            Why a tile cannot be used, by tile; the others are compiled.
        """
        if self._jobs == 1:
            return {}
        found, ended = self._compiled(tried, self._jobs)
        for candidate in ended:  # some process died and took the others' work with it; alone, each shows if it was it
            alone, guilty = self._compiled([candidate], 1)
            found |= alone | dict.fromkeys((one.tile for one in guilty), "the compiling process died")
        if ended:
            self._close()  # the next kernel's candidates are compiled by all jobs again
        return found

    def _compiled(self, tried: Sequence[Candidate], jobs: int) -> tuple[dict[Tile, str], list[Candidate]]:
        """Reasons by tile, and candidates of which nothing is known since a process died."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
        found: dict[Tile, str] = {}
        ended: list[Candidate] = []
        try:
            futures = [self._pool.submit(self._compile, candidate) for candidate in tried]
        except BrokenProcessPool:
            self._close()
            return {}, list(tried)
        for candidate, future in zip(tried, futures, strict=True):
            try:
                reason = future.result()
            except BrokenProcessPool:
                ended.append(candidate)
            else:
                found |= {} if reason is None else {candidate.tile: reason}
        if ended:
            self._close()
        return found, ended

    def _close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)


@once
def _short(kernel: str, case: str) -> Tunable:
    full = CASES[case]
    return tunable(kernel, replace(full, shape=replace(full.shape, tokens=_FEW_TOKENS)), torch.device("cuda"))
