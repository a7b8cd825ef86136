"""Times contenders against each other: correctness first, then all of them in turns, in one run.

Contenders take turns (A B C, B C A, ...), so that a machine that slows down for a while slows all of them, and each
runs after each other one equally often. Ratios are taken round by round, never between two medians.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch

from kvcompress.bench.peak_memory import peak_memory

Clock = Callable[[], float]


class WrongResultError(RuntimeError):
    """A contender's result is not the reference's: its time would mean nothing."""


class CaseRow(TypedDict):
    """One contender of one case, as it stands in the JSON.

    ``median``, ``q20`` and ``q80`` are times of one call in ``unit``. ``ratio`` is this contender's time divided by
    that of the contender ``ratio_to``: the median over the rounds; ``ratio_q20`` and ``ratio_q80`` are its quantiles.
    """

    case: str
    shape: str
    dtype: str
    provider: str
    unit: str
    median: float
    q20: float
    q80: float
    repeats: int
    bytes_moved: int | None
    peak_memory_bytes: int | None
    max_error: float | None
    ratio_to: str
    ratio: float
    ratio_q20: float
    ratio_q80: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to do the work of a case.

    Args:
        provider: its name.
        run: does the work once.
        error: runs the work once and returns how far the result is from the reference, relative to the largest value
            of the reference; None where there is nothing to compare with.
        tolerance: the largest error that is no mistake.
        calls: how often ``run`` is called for one sample; more for work that is too short for the clock.
        bytes_moved: bytes that one call reads and writes at least, where that is known.
        counts_memory: whether the peak of temporary memory of one call is measured too (apart from the timing).
    """

    provider: str
    run: Callable[[], object]
    error: Callable[[], float] | None = None
    tolerance: float = 1e-4
    calls: int = 1
    bytes_moved: int | None = None
    counts_memory: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a case's rows have in common.

    Args:
        name: name of the case.
        shape: its sizes, for people.
        dtype: dtype of the tensors.
        ratio_to: provider that the others are compared with.
        unit: what the times are in; it begins with ``ms`` and may say what they leave out.
    """

    name: str
    shape: str
    dtype: str = "float32"
    ratio_to: str = "kvcompress"
    unit: str = "ms"


# Milliseconds of one call of a contender.
Sampler = Callable[[Contender], float]


def measure(
    case: Case,
    contenders: Sequence[Contender],
    *,
    repeats: int,
    warm_up: int = 2,
    clock: Clock = time.perf_counter,
    sampler: Sampler | None = None,
) -> list[CaseRow]:
    """Checks each contender, then times all of them in turns.

    Args:
        case: what is measured.
        contenders: who takes part; the one that ``case.ratio_to`` names among them.
        repeats: rounds, at least 1.
        warm_up: calls of each contender before the first round.
        clock: seconds; tests give their own.
        sampler: times a contender instead of the clock, for devices with clocks of their own.

    Returns:
        One row per contender, in the order given; times in milliseconds.

    Raises:
        ValueError: no rounds, two contenders of one name, or none of the name ``case.ratio_to``.
        WrongResultError: a contender's error is beyond its tolerance.
    """
    _check_request(case, contenders, repeats)
    errors = [checked_error(case, contender) for contender in contenders]
    for contender in contenders:
        for _ in range(warm_up):
            contender.run()
    times = interleave(contenders, repeats, clock, sampler)
    memory = [peak_memory(contender.run) if contender.counts_memory else None for contender in contenders]
    yardstick = times[[contender.provider for contender in contenders].index(case.ratio_to)]
    return [
        _row(case, contender, own, yardstick, error, peak)
        for contender, own, error, peak in zip(contenders, times, errors, memory, strict=True)
    ]


def interleave(
    contenders: Sequence[Contender], repeats: int, clock: Clock, sampler: Sampler | None = None
) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    """Times the contenders in turns; each round starts with another one.

    Returns:
        For each contender float64 ``[repeats]``, milliseconds per call.
    """
    take = sampler or (lambda contender: _sample(contender, clock))
    times = [np.zeros(repeats) for _ in contenders]
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection would fall on whoever happens to run
    try:
        for turn in range(repeats):
            for step in range(len(contenders)):
                index = (turn + step) % len(contenders)
                times[index][turn] = take(contenders[index])
    finally:
        if collecting:
            gc.enable()
    return times


def checked_error(case: Case, contender: Contender) -> float | None:
    """Returns a contender's error.

    Raises:
        WrongResultError: it is beyond the tolerance, or NaN.
    """
    if contender.error is None:
        return None
    error = contender.error()
    if math.isnan(error) or error > contender.tolerance:
        raise WrongResultError(
            f"{contender.provider} gives a wrong result in case {case.name!r}: max error {error:.3e}, tolerance "
            f"{contender.tolerance:.3e}. Correct it; a wrong result is not timed."
        )
    return error


def relative_error(actual: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference, relative to the largest absolute value of the reference; NaN stays NaN.

    Args:
        actual: any floating dtype.
        reference: float64, of the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    if actual.shape != reference.shape:
        raise ValueError(f"shapes must agree, got {tuple(actual.shape)} and {tuple(reference.shape)}")
    scale = float(reference.double().abs().max())
    return float((actual.double() - reference.double()).abs().max()) / (scale or 1.0)


def _sample(contender: Contender, clock: Clock) -> float:
    """Milliseconds of one call, the mean over ``calls``."""
    start = clock()
    for _ in range(contender.calls):
        contender.run()
    if torch.cuda.is_available():  # a GPU's work is done when it says so
        torch.cuda.synchronize()
    return 1e3 * (clock() - start) / contender.calls


def _row(
    case: Case,
    contender: Contender,
    own: np.ndarray[Any, np.dtype[np.float64]],
    yardstick: np.ndarray[Any, np.dtype[np.float64]],
    error: float | None,
    peak: int | None,
) -> CaseRow:
    q20, median, q80 = (float(value) for value in np.quantile(own, (0.2, 0.5, 0.8)))
    low, ratio, high = (float(value) for value in np.quantile(own / yardstick, (0.2, 0.5, 0.8)))
    return CaseRow(
        case=case.name,
        shape=case.shape,
        dtype=case.dtype,
        provider=contender.provider,
        unit=case.unit,
        median=median,
        q20=q20,
        q80=q80,
        repeats=len(own),
        bytes_moved=contender.bytes_moved,
        peak_memory_bytes=peak,
        max_error=error,
        ratio_to=case.ratio_to,
        ratio=ratio,
        ratio_q20=low,
        ratio_q80=high,
    )


def _check_request(case: Case, contenders: Sequence[Contender], repeats: int) -> None:
    names = [contender.provider for contender in contenders]
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}; 20 gives useful quantiles")
    if len(set(names)) < len(names):
        raise ValueError(f"contenders must have names of their own, got {names}; rename one")
    if case.ratio_to not in names:
        raise ValueError(f"ratio_to must name one of the contenders {names}, got {case.ratio_to!r}")
