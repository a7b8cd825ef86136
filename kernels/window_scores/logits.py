"""Device functions that both passes of ``window_scores`` share: blocks of vectors, logits, and who sees whom."""

import triton
import triton.language as tl

from kvcompress.kernels.exponentials import LOG2E
from kvcompress.kernels.softcap import softcapped


@triton.jit
def block_of(rows, real, start, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr):
    """Dimensions ``start .. start + BLOCK_D`` of vectors given as pointers: ``[rows, BLOCK_D]``."""
    d = start + tl.arange(0, BLOCK_D)
    block = tl.load(rows[:, None] + d[None, :], mask=real[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
    return block.to(tl.float32) if UPCAST else block


@triton.jit
def base2_logits(
    left, right, left_rows, left_real, right_rows, right_real, scale, softcap,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Logits times log2(e), given the first blocks of both sides; ``scale`` has that factor already without a softcap.

    In float32, whose products hold operands in registers, there are further blocks. Each is scaled before it is added:
    that keeps the compiler from running one sum through all of them, whose rounding would grow with head_dim.
    """
    logits = tl.dot(left, tl.trans(right), input_precision="ieee") * scale
    if HEAD_DIM > BLOCK_D:
        for start in range(BLOCK_D, HEAD_DIM, BLOCK_D):
            left = block_of(left_rows, left_real, start, HEAD_DIM, BLOCK_D, UPCAST)
            right = block_of(right_rows, right_real, start, HEAD_DIM, BLOCK_D, UPCAST)
            logits += tl.dot(left, tl.trans(right), input_precision="ieee") * scale
    if softcap is not None:
        logits = softcapped(logits, softcap) * LOG2E
    return logits


@triton.jit
def visible_pairs(key_position, query_position, sliding_window):
    """Whether queries see keys by position; both come with the axes that broadcast. Position -1 is seen by none."""
    distance = query_position - key_position
    visible = (distance >= 0) & (key_position >= 0)
    if sliding_window is not None:
        visible = visible & (distance < sliding_window)
    return visible
