"""Exponentials for float32 kernels, good to about one unit in the last place.

The hardware's power of two is good to two. A softmax of 16-bit numbers does not see the difference; float32 statistics
do, where a variance is that of nearly equal probabilities.

Source:
    The usual reduction to a whole power of two and a Taylor polynomial of the rest (Cody and Waite, 1980).
"""

import triton
import triton.language as tl

LN2_HIGH = tl.constexpr(0.693359375)  # ten bits: its product with a whole number below 2^14 is exact
LN2_LOW = tl.constexpr(-2.1219444005469057e-4)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _whole_power(n):
    """``2**n`` of whole numbers in float32 from -127, which gives 0, to 127: their bits. Of NaN it gives 1."""
    number = tl.where(n == n, n, 0.0).to(tl.int32)
    return ((number + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _within(x, most):
    """``x``, at most ``most`` from 0; NaN stays NaN."""
    above = tl.maximum(x, -most, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(above, most, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def exp2_of(x, ACCURATE: tl.constexpr):
    """``2**x`` of float32, at most 2^127; below 2^-126 it is 0.

    Args:
        x: float32; -inf gives 0.
        ACCURATE: to about one unit in the last place, else as the hardware does it.
    """
    if ACCURATE:
        x = _within(x, 127.0)
        n = tl.floor(x + 0.5)
        rest = x - n  # exact
        series = rest * 1.525273380405984e-05 + 0.00015403530393381608
        series = series * rest + 0.0013333558146428443
        series = series * rest + 0.009618129107628477
        series = series * rest + 0.05550410866482158
        series = series * rest + 0.2402265069591007
        series = series * rest + 0.6931471805599453
        power = (series * rest + 1.0) * _whole_power(n)
    else:
        power = tl.exp2(x)
    return power


@triton.jit
def exp_of(x, ACCURATE: tl.constexpr):
    """``e**x`` of float32, see :func:`exp2_of`.

    Args:
        x: float32; -inf gives 0.
        ACCURATE: to about one unit in the last place, else as the hardware does it.
    """
    if ACCURATE:
        x = _within(x, 88.0)
        n = tl.floor(x * LOG2E + 0.5)
        rest = (x - n * LN2_HIGH) - n * LN2_LOW
        series = rest * 0.0001984126984126984 + 0.001388888888888889
        series = series * rest + 0.008333333333333333
        series = series * rest + 0.041666666666666664
        series = series * rest + 0.16666666666666666
        series = series * rest + 0.5
        series = series * rest + 1.0
        power = (series * rest + 1.0) * _whole_power(n)
    else:
        power = tl.exp(x)
    return power
