"""Times the kernels against what they replace: the work of ``kvcompress bench kernels``."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import torch

from kvcompress.bench.kernels_bench.decode_case import decode_attend
from kvcompress.bench.kernels_bench.device_timing import DEVICE_SUFFIX, ON_DEVICE, copy_bandwidth, samplers
from kvcompress.bench.kernels_bench.goals import KernelRow
from kvcompress.bench.kernels_bench.layer_shapes import LayerShape
from kvcompress.bench.kernels_bench.prefill_cases import compact, score_select_compact, select_top_k, window_scores
from kvcompress.bench.kernels_bench.prepared_case import Layer, PreparedCase, Skipped
from kvcompress.bench.measure import Case, CaseRow, Clock, Contender, Sampler, WrongResultError, checked_error, measure
from kvcompress.bench.results_file import RESULTS
from kvcompress.commands.failures import first_line
from kvcompress.kernels.dispatch import why_not_triton

OPERATIONS: Final[Mapping[str, Callable[[Layer], Iterator[PreparedCase]]]] = MappingProxyType(
    {
        "window_scores": window_scores,
        "select_top_k": select_top_k,
        "compact": compact,
        "score_select_compact": score_select_compact,
        "decode_attend": decode_attend,
    }
)
OUR_BACKENDS: Final = ("triton", "torch")
REPEATS: Final = 20
QUICK_REPEATS: Final = 3


class LeftOut(NamedTuple):
    """A contender of a case that was not timed, and why not."""

    case: str
    shape: str
    dtype: str
    provider: str
    reason: str
    wrong: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """What one case gave.

    Attributes:
        rows: the contenders that were timed.
        left_out: the others.
    """

    rows: list[KernelRow]
    left_out: list[LeftOut]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRun:
    """What all cases gave.

    Attributes:
        bandwidth: bytes per second of a copy on the device, reads and writes counted.
        rows: the contenders that were timed, and the copy before them.
        left_out: the others.
    """

    bandwidth: float
    rows: list[KernelRow]
    left_out: list[LeftOut]

    @classmethod
    def of(cls, results: Sequence[CaseResult]) -> KernelRun:
        """Joins the cases done so far.

        Args:
            results: as :meth:`KernelBenchmark.run` reports them, that of the copy first.
        """
        copied = results[0].rows[0]
        return cls(
            bandwidth=(copied["bytes_moved"] or 0) / (copied["median"] / 1e3),
            rows=[row for result in results for row in result.rows],
            left_out=[entry for result in results for entry in result.left_out],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelBenchmark:
    """What is timed, and how.

    Attributes:
        operations: keys of :data:`OPERATIONS`.
        shapes: layers.
        dtype: of queries, keys and values.
        device: where everything runs.
        backends: backends of ours that take part, the yardstick first; see :func:`our_backends`.
        skipped: why one of them does not.
        quick: few rounds; the figures mean nothing.
        clock: seconds, on a CPU.
    """

    operations: Sequence[str]
    shapes: Sequence[LayerShape]
    dtype: torch.dtype
    device: torch.device
    backends: tuple[str, ...]
    skipped: list[Skipped] = field(default_factory=list)
    quick: bool = False
    clock: Clock = time.perf_counter

    def run(self, report: Callable[[CaseResult], object] = lambda result: None) -> KernelRun:
        """Runs everything.

        Args:
            report: is told of each case as soon as it is done.

        Raises:
            ValueError: an unknown operation.
        """
        unknown = sorted(set(self.operations) - set(OPERATIONS))
        if unknown:
            raise ValueError(f"operations must be among {', '.join(OPERATIONS)}; got {', '.join(unknown)}")
        clocks = samplers(self.device)
        bandwidth, copied = copy_bandwidth(
            self.device, sampler=list(clocks.values())[-1], clock=self.clock, quick=self.quick
        )
        first = CaseResult(rows=[KernelRow(**copied, share_of_bandwidth=1.0)], left_out=[])
        report(first)
        results = [first]
        for prepared in self._cases():
            results.append(self._case(prepared, clocks, bandwidth))
            report(results[-1])
        return KernelRun.of(results)

    def _cases(self) -> Iterator[PreparedCase]:
        with torch.inference_mode():
            for shape in self.shapes:
                layer = Layer(shape, self.dtype, self.device, self.backends)
                for name in self.operations:
                    for prepared in OPERATIONS[name](layer):
                        yield replace(prepared, skipped=[*self.skipped, *prepared.skipped])

    def _case(self, prepared: PreparedCase, clocks: Mapping[str, Sampler | None], bandwidth: float) -> CaseResult:
        """Checks each contender, leaves out those that cannot run or are wrong, and times the others."""
        case = prepared.case
        which = (case.name, case.shape, case.dtype)
        left_out = [LeftOut(*which, *entry, wrong=False) for entry in prepared.skipped]
        right = []
        for contender in prepared.contenders:
            outcome = _checked(case, contender)
            if isinstance(outcome, Contender):
                right.append(outcome)
            else:
                left_out.append(outcome)
        rows: list[KernelRow] = []
        for unit, sampler in clocks.items():
            timed = _as_timed(right, unit, prepared.launch_bound)
            if timed:
                yardsticks = [contender.provider for contender in timed]
                ratio_to = case.ratio_to + (DEVICE_SUFFIX if unit == ON_DEVICE else "")
                ratio_to = ratio_to if ratio_to in yardsticks else yardsticks[0]
                measured = measure(
                    replace(case, unit=unit, ratio_to=ratio_to),
                    timed,
                    repeats=QUICK_REPEATS if self.quick else REPEATS,
                    clock=self.clock,
                    sampler=sampler,
                )
                rows += [_with_share(row, bandwidth) for row in measured]
        return CaseResult(rows=rows, left_out=left_out)


def our_backends(requested: str, device: torch.device, dtype: torch.dtype) -> tuple[tuple[str, ...], list[Skipped]]:
    """Which of our backends take part.

    Args:
        requested: ``"auto"``: the Triton kernels and torch; or one of the two alone.
        device: where they run.
        dtype: of the tensors.

    Returns:
        The backends, the yardstick first, and what is skipped.

    Raises:
        ValueError: an unknown backend, or Triton alone where it cannot be timed.
    """
    if requested not in ("auto", "triton", "torch"):
        raise ValueError(f"backend must be one of auto, triton, torch; got {requested!r}")
    if requested == "torch":
        return ("torch",), []
    if device.type == "cuda":
        reason = why_not_triton(device, dtype=dtype)
    else:
        reason = "its kernels run on a GPU only (the interpreter's time on a CPU would mean nothing)"
    if reason is None:
        return ("triton", "torch") if requested == "auto" else ("triton",), []
    if requested == "triton":
        raise ValueError(f"backend='triton' cannot be timed: {reason}. Use backend='torch' (or 'auto').")
    return ("torch",), [Skipped("triton", reason)]


def default_file(device: str) -> Path:
    """Where a run on a device is written: ``kernels_cpu.json``, ``kernels_nvidia_h200.json``."""
    return RESULTS / f"kernels_{re.sub('[^a-z0-9]+', '_', device.lower()).strip('_')}.json"


def _checked(case: Case, contender: Contender) -> Contender | LeftOut:
    """The contender with its error as a figure, checked once for all clocks; or why it is left out."""
    which = (case.name, case.shape, case.dtype, contender.provider)
    try:
        error = checked_error(case, contender)
    except torch.OutOfMemoryError:
        return LeftOut(*which, "the device's memory is too small for it", wrong=False)
    except WrongResultError as wrong:
        return LeftOut(*which, str(wrong), wrong=True)
    except Exception as failure:  # of a compiler, a driver or a library in a version of its own: the others go on
        ours = contender.provider.startswith(OUR_BACKENDS)
        return LeftOut(*which, f"fails: {type(failure).__name__}: {first_line(failure)}"[:300], wrong=ours)
    return replace(contender, error=None if error is None else lambda: error)


def _as_timed(contenders: Sequence[Contender], unit: str, launch_bound: frozenset[str]) -> list[Contender]:
    """The contenders as one clock sees them: names of their own, and memory counted only once."""
    if unit != ON_DEVICE:
        return list(contenders)
    return [
        replace(contender, provider=contender.provider + DEVICE_SUFFIX, counts_memory=False)
        for contender in contenders
        if contender.provider not in launch_bound
    ]


def _with_share(row: CaseRow, bandwidth: float) -> KernelRow:
    moved = row["bytes_moved"]
    share = None if moved is None else moved / (row["median"] / 1e3) / bandwidth
    return KernelRow(**row, share_of_bandwidth=share)
