"""Small kernels and made-up outcomes for the tests of the ahead-of-time check."""

from dataclasses import replace

import pytest

from kvcompress.kernels.aot import why_not_here
from kvcompress.kernels.aot_compile import Outcome
from kvcompress.kernels.aot_job import Job
from kvcompress.kernels.aot_resources import Resources
from kvcompress.kernels.configuration import Configuration

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

compiles = pytest.mark.skipif(why_not_here() is not None, reason=f"kernels cannot be compiled: {why_not_here()}")


@triton.jit
def shift_kernel(x_ptr, y_ptr, n, stride, BLOCK: tl.constexpr):
    """Reads the whole block before the first write: a block too large for the registers spills."""
    index = tl.arange(0, BLOCK)
    value = tl.load(x_ptr + index * stride, mask=index < n, other=0.0)
    tl.store(y_ptr + index, value - tl.sum(value, 0), mask=index < n)


@triton.jit
def broken_kernel(x_ptr, BLOCK: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, BLOCK), no_such_name)  # noqa: F821


def configuration(block: int = 128, **changes: object) -> Configuration:
    shift = Configuration(
        operation="shift",
        kernel=shift_kernel,
        case=f"N{block}",
        signature={"x_ptr": "*fp32", "y_ptr": "*fp32", "n": "i32", "stride": "i64"},
        constants={"BLOCK": block},
        divisible=("x_ptr", "y_ptr", "n"),
        warps=1,
    )
    return replace(shift, **changes)


def job(target: str = "sm90", *, aligned: bool = True, block: int = 128, **changes: object) -> Job:
    return Job(configuration=configuration(block, **changes), target=target, aligned=aligned)


def outcome(target: str = "sm90", *, block: int = 128, **resources: int) -> Outcome:
    found = Resources(**{"registers": 64, "shared": 1024, "stack": 0, "spills": 0, **resources})
    return Outcome(job=job(target, block=block), resources=found, seconds=0.25)
