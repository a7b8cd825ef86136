"""The softcap of logits, as a device function that the kernels share."""

import triton
import triton.language as tl

from kvcompress.kernels.exponentials import LOG2E


@triton.jit
def softcapped(logits, softcap):
    """``softcap * tanh(logits / softcap)``, both float32, in natural scale, within about 2e-7 (relative).

    The hardware's tanh is good to 5e-4 only, and (1 - e) / (1 + e) alone loses all digits of a small argument: below
    one half stands an odd polynomial (a fit of our own, relative error 6e-8).
    """
    x = logits / softcap
    square = x * x
    series = -0.006946988752669507 * square + 0.02147272311157122
    series = series * square - 0.053933791563983265
    series = series * square + 0.13333227419412652
    series = series * square - 0.3333333281033188
    small = series * square * x + x
    magnitude = tl.abs(x)
    decay = tl.exp2(magnitude * (-2.0 * LOG2E))
    large = 1.0 - 2.0 * decay / (1.0 + decay)  # what is inexact is subtracted, and small where much is rounded off
    large = tl.where(x < 0.0, -large, large)
    return softcap * tl.where(magnitude < 0.5, small, large)
