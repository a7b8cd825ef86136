"""Peak of the memory that a piece of work allocates on top of what is there already."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_memory(run: Callable[[], object]) -> int:
    """Bytes that tensors made by ``run`` occupy at the worst moment, its result included.

    On the CPU torch's allocator reports every allocation and release to the profiler, also those that an operator makes
    for itself; their running sum is exact and does not depend on what the process did before, unlike the resident size.
    Memory that MKL or oneDNN take past that allocator (packing buffers of a matrix product) does not show. On a GPU the
    caching allocator's own peak is taken, also where it is 0 (a replayed graph): work is the GPU's if it allocates or
    its result lies there, and is then not run a second time under the profiler.

    Args:
        run: the work; called once, or twice where there is a GPU and the work does not use it.

    Returns:
        Bytes.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        torch.cuda.synchronize()
        peak = int(torch.cuda.max_memory_allocated()) - int(before)
        if peak or _lies_on_gpu(result):
            return peak
        del result
    # One cycle is recorded, so that accumulating changes nothing; without it torch 2.11 warns.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        result = run()
    del result
    live = peak = 0
    for event in recorded.profiler.kineto_results.events():  # in order of time
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def _lies_on_gpu(result: object) -> bool:
    """Whether a tensor, or one of a tuple or list, is on a GPU."""
    if isinstance(result, (tuple, list)):
        return any(_lies_on_gpu(one) for one in result)
    return isinstance(result, torch.Tensor) and result.is_cuda
