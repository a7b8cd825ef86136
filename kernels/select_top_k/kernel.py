"""Exact selection of each row's best scores: radix select on the scores' bits, then ranks by counting.

Scores become unsigned keys of the same order. Four histograms of eight bits each find the key of the worst chosen
score; the chosen are then written in index order, and the rank of each is the number of chosen that go before it.
Nothing but integers is added up, so the result depends neither on the order of threads nor on the device.

A row is one program (``_select_row_kernel``), or, where rows are long, many (``_histogram_kernel`` for each digit,
``_count_kernel``, ``_scatter_kernel``); every program of a row derives the same threshold from the same histograms.
"""

import triton
import triton.language as tl


@triton.jit
def _sort_key(score):
    """Unsigned key in the order of the scores: -0.0 as 0.0, NaN as 0, which is below the key of -inf.

    Only bits are touched: no setting for denormals or fused arithmetic can change the order.
    """
    bits = score.to(tl.uint32, bitcast=True)
    bits = tl.where(bits == 0x80000000, 0, bits)
    key = tl.where((bits >> 31) != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    return tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0, key).to(tl.uint32)


@triton.jit
def _row_extent(row, offset_ptr, row_k_ptr, count, k, stride_row):
    """A row's first score, how many it has, and how many it wants."""
    if offset_ptr is None:
        start = row * stride_row
        length = tl.full([], 0, tl.int32) + count
    else:
        start = tl.load(offset_ptr + row)
        length = (tl.load(offset_ptr + row + 1) - start).to(tl.int32)
    wanted = tl.minimum(k, length)
    if row_k_ptr is not None:
        wanted = tl.maximum(tl.minimum(tl.load(row_k_ptr + row), wanted), 0).to(tl.int32)
    return start, length, wanted


@triton.jit
def _narrow(histogram, threshold, remaining, shift):
    """Adds the digit in which the ``remaining``-th best key falls; those in higher digits no longer remain."""
    digit = tl.arange(0, 256)
    at_least = tl.cumsum(histogram, 0, reverse=True)
    last = tl.sum((at_least >= remaining).to(tl.int32), 0) - 1
    remaining -= tl.sum(tl.where(digit > last, histogram, 0), 0)
    return threshold | (last.to(tl.uint32) << shift), remaining


@triton.jit
def _threshold(histogram_ptr, row, wanted, DIGITS: tl.constexpr):
    """The first ``DIGITS`` digits of the worst chosen key, and how many keys with these digits remain to be chosen."""
    remaining = wanted
    threshold = tl.zeros([], tl.uint32)
    for digit in tl.static_range(DIGITS):
        histogram = tl.load(histogram_ptr + (row * 4 + digit) * 256 + tl.arange(0, 256))
        threshold, remaining = _narrow(histogram, threshold, remaining, 24 - 8 * digit)
    return threshold, remaining


@triton.jit
def _digit_histogram(key, valid, threshold, DIGIT: tl.constexpr):
    """Counts one digit of the keys whose higher digits are the threshold's."""
    shift: tl.constexpr = 24 - 8 * DIGIT
    if DIGIT > 0:
        valid = valid & ((key >> (shift + 8)) == (threshold >> (shift + 8)))
    return tl.histogram(((key >> shift) & 0xFF).to(tl.int32), 256, mask=valid)


@triton.jit
def _store_chosen(index_ptr, key_ptr, place, key, valid, threshold, remaining, above_before, equal_before):
    """Writes the chosen of a block, in index order, behind those of the blocks before it.

    Chosen are the keys above the threshold and the first ``remaining`` equal ones.
    """
    above = (valid & (key > threshold)).to(tl.int32)
    equal = (valid & (key == threshold)).to(tl.int32)
    equal_rank = equal_before + tl.cumsum(equal, 0) - equal
    chosen = above + equal * (equal_rank < remaining).to(tl.int32)
    slot = above_before + tl.minimum(equal_before, remaining) + tl.cumsum(chosen, 0) - chosen
    tl.store(index_ptr + slot, place, mask=chosen != 0)
    # Signed keys of the same order: torch has few operations on unsigned ones.
    tl.store(key_ptr + slot, (key ^ 0x80000000).to(tl.int32, bitcast=True), mask=chosen != 0)
    return above_before + tl.sum(above, 0), equal_before + tl.sum(equal, 0)


# `count` and `stride_row` may be specialized: rows are read 16 bytes at a time only where both are multiples of 16.
@triton.jit(do_not_specialize=["k"])
def _select_row_kernel(
    score_ptr,
    offset_ptr,
    row_k_ptr,
    index_ptr,
    key_ptr,
    count,
    k,
    stride_row,
    BLOCK: tl.constexpr,
):
    """One program per row: index and key of its chosen scores, in index order."""
    row = tl.program_id(0).to(tl.int64)
    start, length, wanted = _row_extent(row, offset_ptr, row_k_ptr, count, k, stride_row)
    remaining = wanted
    threshold = tl.zeros([], tl.uint32)
    for digit in tl.static_range(4):
        histogram = tl.zeros([256], tl.int32)
        for first in range(0, length, BLOCK):
            place = first + tl.arange(0, BLOCK)
            key = _sort_key(tl.load(score_ptr + start + place, mask=place < length, other=0.0))
            histogram += _digit_histogram(key, place < length, threshold, digit)
        threshold, remaining = _narrow(histogram, threshold, remaining, 24 - 8 * digit)
    above = tl.zeros([], tl.int32)
    equal = tl.zeros([], tl.int32)
    for first in range(0, length, BLOCK):
        place = first + tl.arange(0, BLOCK)
        key = _sort_key(tl.load(score_ptr + start + place, mask=place < length, other=0.0))
        above, equal = _store_chosen(
            index_ptr + row * k, key_ptr + row * k, place, key, place < length, threshold, remaining, above, equal
        )


@triton.jit(do_not_specialize=["k"])
def _histogram_kernel(
    score_ptr,
    offset_ptr,
    row_k_ptr,
    histogram_ptr,
    count,
    k,
    stride_row,
    DIGIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (row, block): adds the block's counts of one digit to the row's histogram, which was zero."""
    row = tl.program_id(0).to(tl.int64)
    start, length, wanted = _row_extent(row, offset_ptr, row_k_ptr, count, k, stride_row)
    first = tl.program_id(1) * BLOCK
    if first >= length:
        return
    place = first + tl.arange(0, BLOCK)
    key = _sort_key(tl.load(score_ptr + start + place, mask=place < length, other=0.0))
    threshold, _ = _threshold(histogram_ptr, row, wanted, DIGIT)
    counts = _digit_histogram(key, place < length, threshold, DIGIT)
    bins = histogram_ptr + (row * 4 + DIGIT) * 256 + tl.arange(0, 256)
    tl.atomic_add(bins, counts, mask=counts > 0, sem="relaxed")


@triton.jit(do_not_specialize=["k"])
def _count_kernel(
    score_ptr,
    offset_ptr,
    row_k_ptr,
    histogram_ptr,
    above_ptr,
    equal_ptr,
    count,
    k,
    stride_row,
    BLOCK: tl.constexpr,
):
    """Program (row, block): how many keys of the block are above the threshold and how many equal it."""
    row = tl.program_id(0).to(tl.int64)
    start, length, wanted = _row_extent(row, offset_ptr, row_k_ptr, count, k, stride_row)
    first = tl.program_id(1) * BLOCK
    if first >= length:
        return
    place = first + tl.arange(0, BLOCK)
    key = _sort_key(tl.load(score_ptr + start + place, mask=place < length, other=0.0))
    threshold, _ = _threshold(histogram_ptr, row, wanted, 4)
    valid = place < length
    block = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(above_ptr + block, tl.sum((valid & (key > threshold)).to(tl.int32), 0))
    tl.store(equal_ptr + block, tl.sum((valid & (key == threshold)).to(tl.int32), 0))


@triton.jit(do_not_specialize=["k"])
def _scatter_kernel(
    score_ptr,
    offset_ptr,
    row_k_ptr,
    histogram_ptr,
    above_ptr,
    equal_ptr,
    index_ptr,
    key_ptr,
    count,
    k,
    stride_row,
    BLOCK: tl.constexpr,
    BLOCK_COUNTS: tl.constexpr,
):
    """Program (row, block): index and key of the block's chosen scores, behind those of the blocks before it."""
    row = tl.program_id(0).to(tl.int64)
    start, length, wanted = _row_extent(row, offset_ptr, row_k_ptr, count, k, stride_row)
    first = tl.program_id(1) * BLOCK
    if first >= length:
        return
    before = row * tl.num_programs(1)
    above = tl.zeros([BLOCK_COUNTS], tl.int32)
    equal = tl.zeros([BLOCK_COUNTS], tl.int32)
    for first_block in range(0, tl.program_id(1), BLOCK_COUNTS):
        block = first_block + tl.arange(0, BLOCK_COUNTS)
        above += tl.load(above_ptr + before + block, mask=block < tl.program_id(1), other=0)
        equal += tl.load(equal_ptr + before + block, mask=block < tl.program_id(1), other=0)
    place = first + tl.arange(0, BLOCK)
    key = _sort_key(tl.load(score_ptr + start + place, mask=place < length, other=0.0))
    threshold, remaining = _threshold(histogram_ptr, row, wanted, 4)
    _store_chosen(
        index_ptr + row * k,
        key_ptr + row * k,
        place,
        key,
        place < length,
        threshold,
        remaining,
        tl.sum(above, 0),
        tl.sum(equal, 0),
    )


@triton.jit(do_not_specialize=["count", "k"])
def _rank_kernel(
    index_ptr,
    key_ptr,
    offset_ptr,
    row_k_ptr,
    chosen_ptr,
    count,
    k,
    BLOCK: tl.constexpr,
    BLOCK_OTHER: tl.constexpr,
):
    """Program (row, block of chosen): stores each index at the number of chosen keys that go before its own.

    Places beyond what the row wants get -1. Counts stay apart per column until the end: one reduction in all.
    """
    row = tl.program_id(0).to(tl.int64)
    _, _, wanted = _row_extent(row, offset_ptr, row_k_ptr, count, k, 0)
    first = tl.program_id(1) * BLOCK
    slot = first + tl.arange(0, BLOCK)
    key = tl.load(key_ptr + row * k + slot, mask=slot < wanted, other=0)
    before = tl.zeros([BLOCK, BLOCK_OTHER], tl.int32)
    for first_other in range(0, tl.where(first < wanted, wanted, 0), BLOCK_OTHER):
        other = first_other + tl.arange(0, BLOCK_OTHER)
        other_key = tl.load(key_ptr + row * k + other, mask=other < wanted, other=-(2**31))
        # Slots are in index order, so an equal key goes before where its slot does; no key is so large that + 1 wraps.
        earlier = (other[None, :] < slot[:, None]).to(tl.int32)
        before += (other_key[None, :] + earlier > key[:, None]).to(tl.int32)
    index = tl.load(index_ptr + row * k + slot, mask=slot < wanted, other=0).to(tl.int64)
    tl.store(chosen_ptr + row * k + tl.sum(before, 1), index, mask=slot < wanted)
    tl.store(chosen_ptr + row * k + slot, tl.full([BLOCK], -1, tl.int64), mask=(slot >= wanted) & (slot < k))
