"""The benchmark of the kernels where they run: in the interpreter, and on a GPU with its clocks."""

import pytest
import torch

from kvcompress.bench.kernels_bench.device_timing import (
    DEVICE_SUFFIX,
    ON_DEVICE,
    CapturedRun,
    GpuSampler,
    copy_bandwidth,
    samplers,
)
from kvcompress.bench.kernels_bench.kernel_speed import OPERATIONS
from kvcompress.bench.measure import Contender, checked_error
from tests.bench.test_kernel_bench import CPU, layer, run, ticking


def check_kernels(device: torch.device, dtype: torch.dtype) -> None:
    """Every Triton contender gives the right result on a small layer."""
    made = layer(dtype, device, "triton")
    checked = []
    with torch.inference_mode():
        for name in OPERATIONS:
            for prepared in OPERATIONS[name](made):
                for contender in prepared.contenders:
                    if contender.provider.startswith("triton"):
                        checked.append(checked_error(prepared.case, contender))
    assert len(checked) >= 8
    assert None not in checked


@pytest.mark.interpret
def test_kernels_stand_the_checks() -> None:
    check_kernels(CPU, torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_stand_the_checks_on_the_gpu(dtype: torch.dtype) -> None:
    check_kernels(torch.device("cuda"), dtype)


@pytest.mark.gpu
def test_run_on_the_gpu_times_with_and_without_launches() -> None:
    device = torch.device("cuda")
    found = run(device=device, dtype=torch.bfloat16, backends=("triton", "torch"))
    assert not [entry for entry in found.left_out if entry.wrong]
    times = {row["provider"]: row["median"] for row in found.rows if row["case"] == "decode_attend"}
    for provider in ("triton", "triton_without_eviction", "triton_cuda_graph", "triton_one_launch"):
        assert 0 < times[provider + DEVICE_SUFFIX] <= times[provider] * 1.5


@pytest.mark.gpu
def test_gpu_sampler_times_the_device() -> None:
    cycles = 4_000_000
    contender = Contender(provider="a", run=lambda: torch.cuda._sleep(cycles))
    queued, launched = (GpuSampler(torch.device("cuda"), queued=flag)(contender) for flag in (True, False))
    assert queued == pytest.approx(launched, rel=0.2)
    assert 0.5 < queued < 20  # milliseconds of that many cycles at any clock rate of today


@pytest.mark.gpu
def test_captured_run_repeats_the_work() -> None:
    counter = torch.zeros(4, device="cuda")
    replay = CapturedRun(lambda: counter.add_(1), warm_up=2)
    replay.record()  # its warm-ups count, too
    before = counter.clone()
    replay()
    assert torch.equal(replay(), before + 2)


@pytest.mark.gpu
def test_copy_bandwidth_on_the_gpu_is_plausible() -> None:
    device = torch.device("cuda")
    sampler = samplers(device)[ON_DEVICE]
    bandwidth, row = copy_bandwidth(device, sampler=sampler, clock=ticking(), repeats=5)
    assert row["unit"] == ON_DEVICE
    assert 5e10 < bandwidth < 2e13
