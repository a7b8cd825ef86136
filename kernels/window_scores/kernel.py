"""Triton kernels of ``window_scores``: attention statistics of the last queries, without their attention matrix.

Keys are read at most twice. ``_window_lse_kernel`` adds up the exponentials of every window query over one split of the
keys and ``_lse_combine_kernel`` joins the splits; both fall away where the attention forward has given the result.
``_window_scores_kernel`` then computes the probabilities tile by tile. Keys are the M dimension of its product and the
rows (heads of a group x window queries) are N, so that all queries of a window stand in one tile: the variance is the
two-pass one, taken in registers (a running sum of squares is up to 100 percent wrong for probabilities that are nearly
equal). Large groups take several programs, each with a chunk of the heads: a loop over chunks made the compiler buffer
the queries many times over.

Exponents and log-sum-exps are of base 2 within the kernels. A log-sum-exp in float32 has lost what lies below its last
digit, and every probability of its row would be off by that: a correction, a factor near 1, gives it back.

Blocks that every query sees go without masks: comparisons and selections run at half the rate of arithmetic. What is
not seen has the exponent HIDDEN, whose power is 0 and whose product with 0 is 0, which that of -inf is not.

An optional argument that is None is compiled out.
"""

import triton
import triton.language as tl

from kvcompress.kernels.exponentials import LOG2E, exp2_of
from kvcompress.kernels.window_scores.logits import base2_logits, block_of, visible_pairs

LN2 = tl.constexpr(0.6931471805599453)
HIDDEN = tl.constexpr(-1e30)


@triton.jit
def _joined(top, total, other_top, other_total):
    """Joins two parts ``total * 2**top`` of a sum of powers, for either of which top may be -inf."""
    new_top = tl.maximum(top, other_top)
    shift = tl.where(new_top == -float("inf"), 0.0, new_top)
    return new_top, total * tl.exp2(top - shift) + other_total * tl.exp2(other_top - shift)


@triton.jit
def _correction(rounded, exact):
    """``2**(rounded - exact)`` of a float32 and the float64 that it is the rounding of; 1 where both are -inf."""
    finite = rounded > -float("inf")
    lost = tl.where(finite, rounded, 0.0).to(tl.float64) - tl.where(finite, exact, 0.0)
    return lost.to(tl.float32) * LN2 + 1.0  # so little is lost that its square is nothing


@triton.jit(do_not_specialize=["keys", "window", "last_position", "sliding_window", "split_keys"])
def _window_lse_kernel(
    query_ptr,  # [B, Hq, W, D]
    key_ptr,  # [B, Hkv, T, D]
    positions_ptr,  # int64 [B, Hkv, T], taken as 32 bits, which they fit in; or None: 0 .. T-1
    partial_ptr,  # float32 [2, splits, B, Hq, W]: exponents, whole numbers or -inf, and sums of powers relative to them
    stride_qb, stride_qh, stride_qw, stride_kb, stride_kh, stride_kt, stride_pb, stride_ph, stride_pt,
    keys, window, last_position, sliding_window, split_keys, scale, softcap,
    GROUP: tl.constexpr, HEADS: tl.constexpr, BLOCK_W: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Sums of exponentials of window queries over one split of the keys. Grid: (splits, kv heads x chunks, batch)."""
    CHUNKS: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    ACCURATE: tl.constexpr = key_ptr.dtype.element_ty == tl.float32
    split = tl.program_id(0)
    kv_head = tl.program_id(1) // CHUNKS
    chunk = tl.program_id(1) % CHUNKS
    batch = tl.program_id(2).to(tl.int64)
    row = tl.arange(0, HEADS * BLOCK_W)
    head = chunk * HEADS + row // BLOCK_W
    w = row % BLOCK_W
    real = (head < GROUP) & (w < window)
    query_head = (kv_head * GROUP + head).to(tl.int64)
    query_position = last_position - window + 1 + w
    query_rows = query_ptr + batch * stride_qb + query_head * stride_qh + w.to(tl.int64) * stride_qw
    query = block_of(query_rows, real, 0, HEAD_DIM, BLOCK_D, UPCAST)
    key_row = key_ptr + batch * stride_kb + kv_head.to(tl.int64) * stride_kh
    if positions_ptr is not None:
        position_row = positions_ptr + batch * stride_pb + kv_head.to(tl.int64) * stride_ph
    top = tl.full([HEADS * BLOCK_W], -float("inf"), tl.float32)
    total = tl.zeros([HEADS * BLOCK_W], tl.float32)
    split_start = split * split_keys
    split_end = tl.minimum(split_start + split_keys, keys)
    ANY_UNSEEN: tl.constexpr = positions_ptr is not None or sliding_window is not None
    seen_end = split_start if ANY_UNSEEN else tl.minimum(split_end, last_position - window + 2)
    seen_end = split_start + tl.maximum(seen_end - split_start, 0) // BLOCK_N * BLOCK_N
    for MASKED in tl.static_range(1 if ANY_UNSEEN else 0, 2):
        for start in range(seen_end if MASKED else split_start, split_end if MASKED else seen_end, BLOCK_N):
            place = tl.arange(0, BLOCK_N)
            inside = tl.full([BLOCK_N], True, tl.int1)
            if MASKED:
                n = start + place
                inside = n < keys
                if positions_ptr is not None:
                    at = position_row + n.to(tl.int64) * stride_pt
                    key_position = tl.load(at, mask=inside, other=-1).to(tl.int32)
                else:
                    key_position = tl.where(inside, n, -1)
                    if sliding_window is not None:  # what no query sees is not read
                        inside = inside & (n > last_position - window + 1 - sliding_window)
            key_rows = key_row + (tl.zeros([], tl.int64) + start) * stride_kt + place * stride_kt
            key = block_of(key_rows, inside, 0, HEAD_DIM, BLOCK_D, UPCAST)
            logits = base2_logits(
                query, key, query_rows, real, key_rows, inside, scale, softcap, HEAD_DIM, BLOCK_D, UPCAST
            )
            if MASKED:
                visible = visible_pairs(key_position[None, :], query_position[:, None], sliding_window)
                logits = tl.where(visible, logits, -float("inf"))
            # A whole number: sums are then rescaled by powers of two, which rounds nothing.
            new_top = tl.maximum(top, tl.ceil(tl.max(logits, 1)))
            shift = tl.where(new_top == -float("inf"), 0.0, new_top) if MASKED else new_top
            total = total * tl.exp2(top - shift) + tl.sum(exp2_of(logits - shift[:, None], ACCURATE), 1)
            top = new_top
    query_heads = tl.num_programs(1) // CHUNKS * GROUP
    rows = tl.num_programs(2).to(tl.int64) * query_heads * window
    out = split * rows + (batch * query_heads + query_head) * window + w
    tl.store(partial_ptr + out, top, mask=real)
    tl.store(partial_ptr + tl.num_programs(0) * rows + out, total, mask=real)


@triton.jit(do_not_specialize=["rows", "splits", "window", "query_heads"])
def _lse_combine_kernel(
    partial_ptr,  # float32 [2, splits, B, Hq, W]
    sinks_ptr,  # float32 [Hq], or None
    lse_ptr,  # float32 [2, B, Hq, W]: log-sum-exp, and the correction of its probabilities
    rows, splits, window, query_heads, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Joins the sums of the splits, and adds the sinks. Grid: (rows of [B, Hq, W] in blocks)."""
    row = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    real = row < rows
    top = tl.full([BLOCK_R], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + row // window % query_heads, mask=real, other=0.0) * LOG2E
        top = tl.ceil(sink)
        total = tl.where(sink > -float("inf"), tl.exp2(sink - tl.where(sink > -float("inf"), top, 0.0)), 0.0)
    size = splits.to(tl.int64) * rows
    for first in range(0, splits, BLOCK_S):
        split = first + tl.arange(0, BLOCK_S)
        there = (split < splits)[:, None] & real[None, :]
        part = partial_ptr + split[:, None] * rows.to(tl.int64) + row[None, :]
        tops = tl.load(part, mask=there, other=-float("inf"))
        totals = tl.load(part + size, mask=there, other=0.0)
        block_top = tl.max(tops, 0)
        shift = tl.where(block_top == -float("inf"), 0.0, block_top)
        top, total = _joined(top, total, block_top, tl.sum(totals * tl.exp2(tops - shift[None, :]), 0))
    exact = top.to(tl.float64) + tl.log2(tl.where(total > 0.0, total, 1.0).to(tl.float64))
    lse = exact.to(tl.float32)
    tl.store(lse_ptr + row, lse, mask=real)
    tl.store(lse_ptr + rows + row, _correction(lse, exact), mask=real)


@triton.jit(do_not_specialize=["scored", "window", "last_position", "sliding_window", "split_keys"])
def _window_scores_kernel(
    query_ptr,  # [B, Hq, W, D]
    key_ptr,  # [B, Hkv, T, D]
    lse_ptr,  # float32 [B, Hq, W]: of base 2, or natural where no correction is given
    correction_ptr,  # float32 [B, Hq, W], or None
    positions_ptr,  # int64 [B, Hkv, T], taken as 32 bits, which they fit in; or None: 0 .. T-1
    valid_ptr,  # uint8 [B, W], or None: every query counts
    score_ptr,  # float32 [B, Hkv * chunks, scored], as the following four; None where not wanted
    mean_ptr,
    variance_ptr,
    maximum_ptr,
    token_entropy_ptr,
    totals_ptr,  # float32 [2, B, Hkv * chunks, splits]: entropy, variance
    stride_qb, stride_qh, stride_qw, stride_kb, stride_kh, stride_kt, stride_pb, stride_ph, stride_pt, stride_vb,
    stride_vw,
    scored, window, last_position, sliding_window, split_keys, scale, softcap, gamma,
    GROUP: tl.constexpr, HEADS: tl.constexpr, BLOCK_W: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr, ALL_SEEN: tl.constexpr, ALL_COUNT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Statistics of each key of one split, over one chunk of heads. Grid: (splits, kv heads x chunks, batch).

    ALL_SEEN: no mask is needed, every query sees every scored key. ALL_COUNT: every row of the tile is a query that
    counts, but for heads beyond the group. Sums over heads are shares of the group's mean: the chunks add up.
    """
    CHUNKS: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    ACCURATE: tl.constexpr = key_ptr.dtype.element_ty == tl.float32
    split = tl.program_id(0)
    kv_head = tl.program_id(1) // CHUNKS
    chunk = tl.program_id(1) % CHUNKS
    batch = tl.program_id(2).to(tl.int64)
    row = tl.arange(0, HEADS * BLOCK_W)
    head = chunk * HEADS + row // BLOCK_W
    w = row % BLOCK_W
    real = (head < GROUP) & (w < window)
    query_head = (kv_head * GROUP + head).to(tl.int64)
    query_position = last_position - window + 1 + w
    query_rows = query_ptr + batch * stride_qb + query_head * stride_qh + w.to(tl.int64) * stride_qw
    query = block_of(query_rows, real, 0, HEAD_DIM, BLOCK_D, UPCAST)
    one_window = tl.arange(0, BLOCK_W)
    counts = one_window < window
    if valid_ptr is not None:
        real = real & (tl.load(valid_ptr + batch * stride_vb + w.to(tl.int64) * stride_vw, mask=real, other=0) != 0)
        valid = tl.load(valid_ptr + batch * stride_vb + one_window.to(tl.int64) * stride_vw, mask=counts, other=0)
        counts = counts & (valid != 0)
    count = tl.sum(counts.to(tl.float32), 0)
    one_query = 1.0 / tl.maximum(count, 1.0)
    one_degree = 1.0 / tl.maximum(count - 1.0, 1.0)
    query_heads = tl.num_programs(1) // CHUNKS * GROUP
    lse_at = (batch * query_heads + query_head) * window + w
    lse = tl.load(lse_ptr + lse_at, mask=real, other=-float("inf"))
    if correction_ptr is not None:
        correction = tl.load(correction_ptr + lse_at, mask=real, other=0.0)
    else:
        exact = lse.to(tl.float64) * LOG2E
        lse = exact.to(tl.float32)
        correction = _correction(lse, exact)
    # A query that sees nothing, and a row that is none, have probability 0 everywhere.
    lse = tl.where(lse == -float("inf"), -HIDDEN, lse)
    key_row = key_ptr + batch * stride_kb + kv_head.to(tl.int64) * stride_kh
    if positions_ptr is not None:
        position_row = positions_ptr + batch * stride_pb + kv_head.to(tl.int64) * stride_ph
    entropy = tl.zeros([BLOCK_N], tl.float32)
    total_variance = tl.zeros([BLOCK_N], tl.float32)
    program = batch * tl.num_programs(1) + tl.program_id(1)
    split_start = split * split_keys
    split_end = tl.minimum(split_start + split_keys, scored)
    whole_end = split_start + (split_end - split_start) // BLOCK_N * BLOCK_N if ALL_SEEN else split_start
    for MASKED in tl.static_range(0 if ALL_SEEN else 1, 2):
        for start in range(whole_end if MASKED else split_start, split_end if MASKED else whole_end, BLOCK_N):
            place = tl.arange(0, BLOCK_N)
            n = start + place
            inside = n < scored if MASKED else tl.full([BLOCK_N], True, tl.int1)
            read = inside
            key_position = n
            if positions_ptr is not None:
                at = position_row + n.to(tl.int64) * stride_pt
                key_position = tl.load(at, mask=inside, other=-1).to(tl.int32)
            elif sliding_window is not None:  # what no query sees is not read
                read = inside & (n > last_position - window + 1 - sliding_window)
            key_rows = key_row + (tl.zeros([], tl.int64) + start) * stride_kt + place * stride_kt
            key = block_of(key_rows, read, 0, HEAD_DIM, BLOCK_D, UPCAST)
            logits = base2_logits(
                key, query, key_rows, read, query_rows, real, scale, softcap, HEAD_DIM, BLOCK_D, UPCAST
            )
            log_p = logits - lse[None, :]
            if not ALL_SEEN:
                visible = visible_pairs(key_position[:, None], query_position[None, :], sliding_window)
                log_p = tl.where(visible & real[None, :], log_p, HIDDEN)
            p = exp2_of(log_p, ACCURATE) * correction[None, :]
            surprise = tl.sum(p * log_p, 1) * -LN2
            by_head = tl.reshape(p, [BLOCK_N, HEADS, BLOCK_W])
            mean = tl.sum(by_head, 2) * one_query
            deviation = by_head - mean[:, :, None]
            if not ALL_COUNT:
                deviation = tl.where(counts[None, None, :], deviation, 0.0)
            # Over heads and queries at once: in registers first, then between threads.
            squares = tl.reshape(deviation * deviation, [BLOCK_N, HEADS * BLOCK_W])
            variance = tl.sum(squares, 1) * one_degree
            entropy += tl.where(inside, surprise, 0.0)
            total_variance += tl.where(inside, variance, 0.0)
            group_mean = tl.sum(mean, 1) / GROUP
            group_variance = variance / GROUP
            out = program * scored + n
            if score_ptr is not None:
                tl.store(score_ptr + out, group_mean + gamma * group_variance, mask=inside)
            if mean_ptr is not None:
                tl.store(mean_ptr + out, group_mean, mask=inside)
            if variance_ptr is not None:
                tl.store(variance_ptr + out, group_variance, mask=inside)
            if maximum_ptr is not None:
                tl.store(maximum_ptr + out, tl.max(p, 1), mask=inside)
            if token_entropy_ptr is not None:
                tl.store(token_entropy_ptr + out, surprise, mask=inside)
    programs = tl.num_programs(2) * tl.num_programs(1)
    total = program * tl.num_programs(0) + split
    tl.store(totals_ptr + total, tl.sum(entropy, 0))
    tl.store(totals_ptr + programs.to(tl.int64) * tl.num_programs(0) + total, tl.sum(total_variance, 0))


@triton.jit(do_not_specialize=["scored"])
def _pool_scores_kernel(
    chunk_ptr,  # float32 [B * Hkv, CHUNKS, scored]
    score_ptr,  # float32 [B * Hkv, scored]
    scored, CHUNKS: tl.constexpr, POOL: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Adds the chunks up and averages over neighbours; zeros beyond the ends count. Grid: (blocks of keys, B * Hkv)."""
    line = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_N], tl.float32)
    for shift in range(POOL):
        neighbour = n + shift - POOL // 2
        there = (neighbour >= 0) & (neighbour < scored)
        for chunk in range(CHUNKS):
            total += tl.load(chunk_ptr + (line * CHUNKS + chunk) * scored + neighbour, mask=there, other=0.0)
    tl.store(score_ptr + line * scored + n, total / POOL, mask=n < scored)


@triton.jit(do_not_specialize=["programs"])
def _totals_kernel(
    partial_ptr,  # float32 [2 * B, programs]
    total_ptr,  # float32 [2 * B]
    programs, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds up what the programs of a sequence found, in float64. Grid: (2 * B)."""
    line = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, programs, BLOCK):
        program = first + tl.arange(0, BLOCK)
        total += tl.load(partial_ptr + line * programs + program, mask=program < programs, other=0.0).to(tl.float64)
    tl.store(total_ptr + line, tl.sum(total, 0).to(tl.float32))
