"""The exponentials of float32 kernels: within one unit in the last place or so, and right at the ends."""

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from kvcompress.kernels.exponentials import exp2_of, exp_of

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
UNIT = 2.0**-23


@triton.jit
def exponentials_kernel(x_ptr, two_ptr, e_ptr, ACCURATE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    tl.store(two_ptr + i, exp2_of(x, ACCURATE))
    tl.store(e_ptr + i, exp_of(x, ACCURATE))


def exponentials(x: torch.Tensor, accurate: bool) -> tuple[torch.Tensor, torch.Tensor]:
    two, e = torch.empty_like(x), torch.empty_like(x)
    exponentials_kernel[(1,)](x, two, e, ACCURATE=accurate, BLOCK=x.numel())
    return two, e


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("accurate", "units"), [(True, 1.5), (False, 3.0)])
@pytest.mark.parametrize("least", [-1e-6, -1.0, -20.0, -80.0])
def test_relative_error(device: str, accurate: bool, units: float, least: float) -> None:
    x = (torch.rand(8192, dtype=torch.float64) * least).float().to(device)
    two, e = exponentials(x, accurate)
    # e**x by the hardware is a power of two of a product, whose rounding grows with x.
    more = 0.0 if accurate else abs(least) / 2
    for got, exact, allowed in ((two, x.double().exp2(), units), (e, x.double().exp(), units + more)):
        assert float(((got.double() - exact) / exact).abs().max()) <= allowed * UNIT


@pytest.mark.parametrize("device", DEVICES)
def test_ends_and_whole_numbers(device: str) -> None:
    x = torch.tensor([0.0, -0.0, 1.0, -1.0, -126.0, -1e30, -torch.inf, 127.0], device=device)
    two, e = exponentials(x, accurate=True)
    assert two.tolist() == [1.0, 1.0, 2.0, 0.5, 2.0**-126, 0.0, 0.0, 2.0**127]
    assert e.tolist()[:2] == [1.0, 1.0]
    assert e.tolist()[5:7] == [0.0, 0.0]


@pytest.mark.parametrize("device", DEVICES)
def test_nan_stays_nan(device: str) -> None:
    x = torch.full((4,), torch.nan, device=device)
    for accurate in (True, False):
        assert all(bool(result.isnan().all()) for result in exponentials(x, accurate))
