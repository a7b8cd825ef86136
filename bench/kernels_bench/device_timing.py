"""Clocks for devices: events of a GPU on a cold cache, recorded launches, and the bandwidth of a plain copy."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch

from kvcompress.bench.measure import Case, CaseRow, Clock, Contender, Sampler, measure

LAUNCHED = "ms"
ON_DEVICE = "ms on the device"  # the work was queued before the device began: no launch is waited for
DEVICE_SUFFIX = ":device"  # of the providers timed so
_FASTEST_CLOCK = 2_500_000_000  # cycles per second: no GPU's is faster
_HOLD_FACTOR = 3.0  # times what a call took to launch: its launches are done long before the device goes on
_LEAST_HOLD = 500_000  # cycles
_LEAST_FLUSH = 64 << 20
_GPU_COPY, _CPU_COPY, _QUICK_COPY = 1 << 30, 256 << 20, 1 << 20


class GpuSampler:
    """Times calls by events of the device, each after a write that is larger than its L2 cache.

    Args:
        device: a GPU.
        queued: hold the device back until the whole call is queued, so that launches cost nothing; else the device
            waits for each launch, as it does in a program that does nothing else.
    """

    def __init__(self, device: torch.device, *, queued: bool) -> None:
        self.device, self.queued = device, queued
        cache = int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0))
        self._flushed = torch.empty(max(2 * cache, _LEAST_FLUSH), dtype=torch.uint8, device=device)

    def __call__(self, contender: Contender) -> float:
        """Milliseconds of one call, the mean over the contender's ``calls``."""
        hold = self._hold(contender.run) if self.queued else 0
        torch.cuda.synchronize(self.device)
        return fmean(self._one(contender.run, hold) for _ in range(contender.calls))

    def _hold(self, run: Callable[[], object]) -> int:
        """Cycles for which the device is held back, by what a call takes to launch."""
        torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        run()
        return max(_LEAST_HOLD, int(_HOLD_FACTOR * _FASTEST_CLOCK * (time.perf_counter() - start)))

    def _one(self, run: Callable[[], object], hold: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flushed.zero_()
        if self.queued:
            torch.cuda._sleep(hold)
        else:
            torch.cuda.synchronize(self.device)
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


class CapturedRun:
    """Work recorded once as a CUDA graph; a call replays it.

    Args:
        run: launches kernels on the current stream and asks the device nothing.
        warm_up: calls before the recording: what happens once must not be in it.
    """

    def __init__(self, run: Callable[[], Any], warm_up: int = 3) -> None:
        self._run, self._warm_up = run, warm_up
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output: Any = None

    def record(self) -> torch.cuda.CUDAGraph:
        """Does the work some times and records it, unless that is done already."""
        if self._graph is not None:
            return self._graph
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self._warm_up):
                self._run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._output = self._run()
        self._graph = graph
        return graph

    def __call__(self) -> Any:
        """Replays the work and returns what it wrote; the next call overwrites that."""
        self.record().replay()
        return self._output


def samplers(device: torch.device) -> dict[str, Sampler | None]:
    """How a device is timed: unit of the times by what takes them; None: the clock of :func:`measure`."""
    if device.type != "cuda":
        return {LAUNCHED: None}
    return {LAUNCHED: GpuSampler(device, queued=False), ON_DEVICE: GpuSampler(device, queued=True)}


def copy_bandwidth(
    device: torch.device, *, sampler: Sampler | None, clock: Clock, quick: bool = False, repeats: int = 15
) -> tuple[float, CaseRow]:
    """What the device reaches at a large copy within its memory: the yardstick of every kernel.

    Args:
        device: which one.
        sampler: its clock; None: ``clock``.
        clock: seconds.
        quick: a copy so small that the figure means nothing.
        repeats: copies timed.

    Returns:
        Bytes read and written per second, from the median; and the row.
    """
    size = _QUICK_COPY if quick else _GPU_COPY if device.type == "cuda" else _CPU_COPY
    # Written, not just reserved: pages that nobody wrote are one page of zeros, and cached.
    source, target = (torch.full((size,), value, dtype=torch.uint8, device=device) for value in (1, 2))

    def error() -> float:
        target.copy_(source)
        return 0.0 if torch.equal(target, source) else float("inf")

    case = Case(
        name="copy",
        shape=f"{size >> 20} MiB",
        dtype="uint8",
        ratio_to="torch_copy",
        unit=LAUNCHED if sampler is None else ON_DEVICE,
    )
    contender = Contender(
        provider="torch_copy", run=lambda: target.copy_(source), error=error, tolerance=0.0, bytes_moved=2 * size
    )
    (row,) = measure(case, [contender], repeats=repeats, clock=clock, sampler=sampler)
    return 2 * size / (row["median"] / 1e3), row
