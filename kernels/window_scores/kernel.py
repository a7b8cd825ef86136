"""Triton kernels of ``window_scores``: attention statistics of the last queries, without their attention matrix.

Keys are read at most twice. ``_window_lse_kernel`` takes the log-sum-exp of every window query over one split of the
keys and ``_lse_combine_kernel`` joins the splits; both fall away where the attention forward has given the result.
``_window_scores_kernel`` then computes the probabilities tile by tile. Keys are the M dimension of its product and the
rows (heads of a group x window queries) are N, so that all queries of a window stand in one tile: the variance is the
two-pass one, taken in registers (a running sum of squares is up to 100 percent wrong for probabilities that are nearly
equal). Large groups take several programs, each with a chunk of the heads: a loop over chunks made the compiler buffer
the queries many times over.

Exponents and log-sum-exps are of base 2 within the kernels. An optional argument that is None is compiled out.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


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
    large = (1.0 - decay) / (1.0 + decay)
    large = tl.where(x < 0.0, -large, large)
    return softcap * tl.where(magnitude < 0.5, small, large)


@triton.jit
def _block(rows, real, start, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr):
    """Dimensions ``start .. start + BLOCK_D`` of vectors given as pointers: ``[rows, BLOCK_D]``."""
    d = start + tl.arange(0, BLOCK_D)
    block = tl.load(rows[:, None] + d[None, :], mask=real[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
    return block.to(tl.float32) if UPCAST else block


@triton.jit
def _add_other_blocks(
    products, left_rows, left_real, right_rows, right_real,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Adds what the dimensions beyond the first block give, in float32: its products hold operands in registers."""
    if HEAD_DIM > BLOCK_D:
        for start in range(BLOCK_D, HEAD_DIM, BLOCK_D):
            left = _block(left_rows, left_real, start, HEAD_DIM, BLOCK_D, UPCAST)
            right = _block(right_rows, right_real, start, HEAD_DIM, BLOCK_D, UPCAST)
            products = tl.dot(left, tl.trans(right), products, input_precision="ieee")
    return products


@triton.jit
def _base2_logits(products, scale, softcap):
    """Logits times log2(e): ``scale`` has that factor already where there is no softcap."""
    logits = products * scale
    if softcap is not None:
        logits = softcapped(logits, softcap) * LOG2E
    return logits


@triton.jit
def _visible(key_position, query_position, sliding_window):
    """Whether queries see keys by position; both come with the axes that broadcast. Position -1 is seen by none."""
    distance = query_position - key_position
    visible = (distance >= 0) & (key_position >= 0)
    if sliding_window is not None:
        visible = visible & (distance < sliding_window)
    return visible


@triton.jit
def _joined(top, total, other_top, other_total):
    """Joins two parts ``total * 2**top`` of a sum of powers, for either of which top may be -inf."""
    new_top = tl.maximum(top, other_top)
    shift = tl.where(new_top == -float("inf"), 0.0, new_top)
    return new_top, total * tl.exp2(top - shift) + other_total * tl.exp2(other_top - shift)


@triton.jit
def _finished(top, total):
    """Log-sum-exp of base 2 from its parts; -inf for a row that saw nothing."""
    return tl.where(total > 0.0, top + tl.log2(tl.where(total > 0.0, total, 1.0)), -float("inf"))


@triton.jit(do_not_specialize=["keys", "window", "last_position", "sliding_window"])
def _window_lse_kernel(
    query_ptr,  # [B, Hq, W, D]
    key_ptr,  # [B, Hkv, T, D]
    positions_ptr,  # int64 [B, Hkv, T], taken as 32 bits, which they fit in; or None: 0 .. T-1
    partial_ptr,  # float32 [splits, B, Hq, W]
    stride_qb, stride_qh, stride_qw, stride_kb, stride_kh, stride_kt, stride_pb, stride_ph, stride_pt,
    keys, window, last_position, sliding_window, scale, softcap,
    GROUP: tl.constexpr, HEADS: tl.constexpr, BLOCK_W: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp of each window query over one split of the keys. Grid: (splits, kv heads x chunks, batch)."""
    CHUNKS: tl.constexpr = (GROUP + HEADS - 1) // HEADS
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
    query = _block(query_rows, real, 0, HEAD_DIM, BLOCK_D, UPCAST)
    key_row = key_ptr + batch * stride_kb + kv_head.to(tl.int64) * stride_kh
    if positions_ptr is not None:
        position_row = positions_ptr + batch * stride_pb + kv_head.to(tl.int64) * stride_ph
    top = tl.full([HEADS * BLOCK_W], -float("inf"), tl.float32)
    total = tl.zeros([HEADS * BLOCK_W], tl.float32)
    first = split * SPLIT
    for start in range(first, tl.minimum(first + SPLIT, keys), BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        inside = n < keys
        if positions_ptr is not None:
            key_position = tl.load(position_row + n.to(tl.int64) * stride_pt, mask=inside, other=-1).to(tl.int32)
        else:
            key_position = tl.where(inside, n, -1)
            if sliding_window is not None:  # what no query sees is not read
                inside = inside & (n > last_position - window + 1 - sliding_window)
        key_rows = key_row + n.to(tl.int64) * stride_kt
        key = _block(key_rows, inside, 0, HEAD_DIM, BLOCK_D, UPCAST)
        products = tl.dot(query, tl.trans(key), input_precision="ieee")
        products = _add_other_blocks(products, query_rows, real, key_rows, inside, HEAD_DIM, BLOCK_D, UPCAST)
        logits = _base2_logits(products, scale, softcap)
        visible = _visible(key_position[None, :], query_position[:, None], sliding_window)
        logits = tl.where(visible, logits, -float("inf"))
        block_top = tl.max(logits, 1)
        shift = tl.where(block_top == -float("inf"), 0.0, block_top)
        block_total = tl.sum(tl.exp2(logits - shift[:, None]), 1)
        top, total = _joined(top, total, block_top, block_total)
    query_heads = tl.num_programs(1) // CHUNKS * GROUP
    out = ((split * tl.num_programs(2) + batch) * query_heads + query_head) * window + w
    tl.store(partial_ptr + out, _finished(top, total), mask=real)


@triton.jit(do_not_specialize=["rows", "splits", "window", "query_heads"])
def _lse_combine_kernel(
    partial_ptr,  # float32 [splits, B, Hq, W]
    sinks_ptr,  # float32 [Hq], or None
    lse_ptr,  # float32 [B, Hq, W]
    rows, splits, window, query_heads, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Joins the log-sum-exps of the splits, and adds the sinks. Grid: (rows of [B, Hq, W] in blocks)."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    real = row < rows
    top = tl.full([BLOCK_R], -float("inf"), tl.float32)
    if sinks_ptr is not None:
        top = tl.load(sinks_ptr + row // window % query_heads, mask=real, other=0.0) * LOG2E
    total = tl.where(top > -float("inf"), 1.0, 0.0)
    part_ptr = partial_ptr + row
    for _ in range(splits):
        part = tl.load(part_ptr, mask=real, other=-float("inf"))
        part_ptr += rows
        top, total = _joined(top, total, part, tl.full([BLOCK_R], 1.0, tl.float32))
    tl.store(lse_ptr + row, _finished(top, total), mask=real)


@triton.jit(do_not_specialize=["scored", "window", "last_position", "sliding_window"])
def _window_scores_kernel(
    query_ptr,  # [B, Hq, W, D]
    key_ptr,  # [B, Hkv, T, D]
    lse_ptr,  # float32 [B, Hq, W]; times lse_scale it is of base 2
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
    scored, window, last_position, sliding_window, scale, softcap, lse_scale, gamma,
    GROUP: tl.constexpr, HEADS: tl.constexpr, BLOCK_W: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, ALL_SEEN: tl.constexpr, ALL_COUNT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Statistics of each key of one split, over one chunk of heads. Grid: (splits, kv heads x chunks, batch).

    ALL_SEEN: no mask is needed, every query sees every scored key. ALL_COUNT: every row of the tile is a query that
    counts, but for heads beyond the group. Sums over heads are shares of the group's mean: the chunks add up.
    """
    CHUNKS: tl.constexpr = (GROUP + HEADS - 1) // HEADS
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
    query = _block(query_rows, real, 0, HEAD_DIM, BLOCK_D, UPCAST)
    one_window = tl.arange(0, BLOCK_W)
    counts = one_window < window
    if valid_ptr is not None:
        real = real & (tl.load(valid_ptr + batch * stride_vb + w.to(tl.int64) * stride_vw, mask=real, other=0) != 0)
        valid = tl.load(valid_ptr + batch * stride_vb + one_window.to(tl.int64) * stride_vw, mask=counts, other=0)
        counts = counts & (valid != 0)
    count = tl.sum(counts.to(tl.float32), 0)
    divisor = tl.maximum(count, 1.0)
    freedom = tl.maximum(count - 1.0, 1.0)
    query_heads = tl.num_programs(1) // CHUNKS * GROUP
    lse = tl.load(lse_ptr + (batch * query_heads + query_head) * window + w, mask=real, other=float("inf")) * lse_scale
    # A query that sees nothing, and a row that is none, have probability 0 everywhere.
    lse = tl.where(lse == -float("inf"), float("inf"), lse)
    key_row = key_ptr + batch * stride_kb + kv_head.to(tl.int64) * stride_kh
    if positions_ptr is not None:
        position_row = positions_ptr + batch * stride_pb + kv_head.to(tl.int64) * stride_ph
    entropy = tl.zeros([BLOCK_N], tl.float32)
    total_variance = tl.zeros([BLOCK_N], tl.float32)
    program = batch * tl.num_programs(1) + tl.program_id(1)
    first = split * SPLIT
    for start in range(first, tl.minimum(first + SPLIT, scored), BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        inside = n < scored
        read = inside
        key_position = n
        if positions_ptr is not None:
            key_position = tl.load(position_row + n.to(tl.int64) * stride_pt, mask=inside, other=-1).to(tl.int32)
        elif sliding_window is not None:  # what no query sees is not read
            read = inside & (n > last_position - window + 1 - sliding_window)
        key_rows = key_row + n.to(tl.int64) * stride_kt
        key = _block(key_rows, read, 0, HEAD_DIM, BLOCK_D, UPCAST)
        products = tl.dot(key, tl.trans(query), input_precision="ieee")
        products = _add_other_blocks(products, key_rows, read, query_rows, real, HEAD_DIM, BLOCK_D, UPCAST)
        log_p = _base2_logits(products, scale, softcap) - lse[None, :]
        if not ALL_SEEN:
            visible = _visible(key_position[:, None], query_position[None, :], sliding_window)
            log_p = tl.where(visible & real[None, :], log_p, -float("inf"))
        p = tl.exp2(log_p)
        surprise = tl.sum(p * tl.maximum(log_p, -1e4), 1) * -LN2  # p = 0 adds 0, not 0 * inf
        entropy += tl.where(inside, surprise, 0.0)
        by_head = tl.reshape(p, [BLOCK_N, HEADS, BLOCK_W])
        mean = tl.sum(by_head, 2) / divisor
        deviation = by_head - mean[:, :, None]
        if not ALL_COUNT:
            deviation = tl.where(counts[None, None, :], deviation, 0.0)
        variance = tl.sum(tl.sum(deviation * deviation, 2), 1) / freedom
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
