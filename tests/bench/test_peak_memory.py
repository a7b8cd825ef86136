"""Peak memory where there is a GPU: of work on it, and of work beside it."""

import pytest
import torch

from kvcompress.bench.kernels_bench.device_timing import CapturedRun
from kvcompress.bench.peak_memory import peak_memory

SIZE = 1 << 20


@pytest.mark.gpu
def test_of_work_on_the_gpu_is_the_allocators() -> None:
    source = torch.ones(SIZE, device="cuda")
    assert peak_memory(lambda: source + 1) == pytest.approx(4 * SIZE, rel=0.01)


@pytest.mark.gpu
def test_of_a_replayed_graph_is_nothing_and_it_runs_once() -> None:
    counter = torch.zeros(4, device="cuda")
    replay = CapturedRun(lambda: counter.add_(1))
    replay.record()
    before = counter.clone()
    assert peak_memory(replay) == 0
    assert torch.equal(counter, before + 1)


@pytest.mark.gpu
def test_of_work_on_the_processor_is_counted_beside_a_gpu() -> None:
    assert peak_memory(lambda: torch.ones(SIZE)) == pytest.approx(4 * SIZE, rel=0.01)
