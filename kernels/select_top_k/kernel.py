"""Exact selection of each row's best scores: radix select on the scores' bits, then ranks by counting.

Scores become unsigned keys of the same order. Short rows are one program each (``_select_row_kernel``), which finds the
key of the worst chosen score and writes the chosen.

Long rows are many programs. ``_nibble_kernel`` counts four bits of the keys at a time. Four rounds of it, sixteen bits,
narrow the threshold down to a bin: all keys at or above the bin are candidates, some more than are wanted.
``_refine_kernel`` goes on to the last bit only where these are too many, and ``_gather_kernel`` writes the candidates.

``_rank_kernel`` then counts for each candidate how many go before it, which is its place. Nothing but integers is added
up, and a candidate carries its index, so the result depends neither on the order of threads nor on the device.
"""

import triton
import triton.language as tl

NIBBLES = tl.constexpr(4)  # rounds of four bits before the candidates are taken


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
def _candidate(key, place):
    """A key and its place in one int64, in the order of the result: the higher key first, then the lower place."""
    return ((key ^ 0x80000000).to(tl.int32, bitcast=True).to(tl.int64) << 32) | (0xFFFFFFFF - place.to(tl.int64))


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
def _narrow(histogram, threshold, remaining, shift, BINS: tl.constexpr):
    """Adds the digit in which the ``remaining``-th best key falls; those in higher digits no longer remain.

    Returns:
        The threshold, how many remain, and how many keys that digit has.
    """
    digit = tl.arange(0, BINS)
    at_least = tl.cumsum(histogram, 0, reverse=True)
    last = tl.maximum(tl.sum((at_least >= remaining).to(tl.int32), 0) - 1, 0)
    remaining -= tl.sum(tl.where(digit > last, histogram, 0), 0)
    there = tl.sum(tl.where(digit == last, histogram, 0), 0)
    return threshold | (last.to(tl.uint32) << shift), remaining, there


@triton.jit
def _threshold(histogram_ptr, row, wanted, DIGITS: tl.constexpr):
    """The first ``DIGITS`` nibbles of the worst chosen key, how many such keys are to be chosen, and how many exist."""
    remaining = wanted
    threshold = tl.zeros([], tl.uint32)
    there = tl.zeros([], tl.int32)
    for digit in tl.static_range(DIGITS):
        histogram = tl.load(histogram_ptr + (row * NIBBLES + digit) * 16 + tl.arange(0, 16))
        threshold, remaining, there = _narrow(histogram, threshold, remaining, 28 - 4 * digit, 16)
    return threshold, remaining, there


@triton.jit
def _byte_histogram(key, valid, threshold, DIGIT: tl.constexpr):
    """Counts one byte of the keys whose higher bytes are the threshold's."""
    shift: tl.constexpr = 24 - 8 * DIGIT
    if DIGIT > 0:
        valid = valid & ((key >> (shift + 8)) == (threshold >> (shift + 8)))
    return tl.histogram(((key >> shift) & 0xFF).to(tl.int32), 256, mask=valid)


@triton.jit
def _row_threshold(
    score_ptr, start, length, threshold, remaining, FIRST_BYTE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The remaining bytes of the worst chosen key, by one program that goes through the row once for each.

    Returns:
        The threshold, how many keys equal to it are to be chosen, and how many exist.
    """
    there = tl.zeros([], tl.int32)
    for digit in tl.static_range(FIRST_BYTE, 4):
        histogram = tl.zeros([256], tl.int32)
        for first in range(0, length, BLOCK):
            place = first + tl.arange(0, BLOCK)
            key = _sort_key(tl.load(score_ptr + start + place, mask=place < length, other=0.0))
            histogram += _byte_histogram(key, place < length, threshold, digit)
        threshold, remaining, there = _narrow(histogram, threshold, remaining, 24 - 8 * digit, 256)
    return threshold, remaining, there


# `count` and `stride_row` may be specialized: rows are read 16 bytes at a time only where both are multiples of 16.
@triton.jit(do_not_specialize=["k", "capacity"])
def _select_row_kernel(
    score_ptr, offset_ptr, row_k_ptr,
    candidate_ptr,  # int64 [rows, capacity]
    found_ptr,  # int32 [rows]
    count, k, capacity, stride_row, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row: its chosen, in the order of their places, and how many they are."""
    row = tl.program_id(0).to(tl.int64)
    start, length, wanted = _row_extent(row, offset_ptr, row_k_ptr, count, k, stride_row)
    threshold = tl.zeros([], tl.uint32)
    threshold, remaining, _ = _row_threshold(score_ptr, start, length, threshold, wanted, 0, BLOCK)
    chosen_before = tl.zeros([], tl.int32)
    equal_before = tl.zeros([], tl.int32)
    for first in range(0, length, BLOCK):
        place = first + tl.arange(0, BLOCK)
        key = _sort_key(tl.load(score_ptr + start + place, mask=place < length, other=0.0))
        equal = ((place < length) & (key == threshold)).to(tl.int32)
        equal_rank = equal_before + tl.cumsum(equal, 0) - equal
        chosen = ((place < length) & (key > threshold)).to(tl.int32)
        chosen += equal * (equal_rank < remaining).to(tl.int32)
        slot = chosen_before + tl.cumsum(chosen, 0) - chosen
        tl.store(candidate_ptr + row * capacity + slot, _candidate(key, place), mask=chosen != 0)
        chosen_before += tl.sum(chosen, 0)
        equal_before += tl.sum(equal, 0)
    tl.store(found_ptr + row, wanted)


@triton.jit(do_not_specialize=["k"])
def _nibble_kernel(
    score_ptr, offset_ptr, row_k_ptr,
    histogram_ptr,  # int32 [rows, NIBBLES, 16], zero where this digit and the later ones are counted
    count, k, stride_row, DIGIT: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Program (row, block of BLOCK * STEPS scores): adds its counts of one nibble to the row's histogram.

    A thread counts in bytes, four to a word, and bytes become halves of words before threads are added up: no bin
    overflows, since a thread meets fewer than 128 scores and a program fewer than 65536.
    """
    row = tl.program_id(0).to(tl.int64)
    start, length, wanted = _row_extent(row, offset_ptr, row_k_ptr, count, k, stride_row)
    block = tl.program_id(1) * (BLOCK * STEPS)
    if block >= length:
        return
    threshold, _, _ = _threshold(histogram_ptr, row, wanted, DIGIT)
    shift: tl.constexpr = 28 - 4 * DIGIT
    word0 = tl.zeros([BLOCK], tl.uint32)
    word1 = tl.zeros([BLOCK], tl.uint32)
    word2 = tl.zeros([BLOCK], tl.uint32)
    word3 = tl.zeros([BLOCK], tl.uint32)
    for step in tl.static_range(STEPS):
        place = block + step * BLOCK + tl.arange(0, BLOCK)
        valid = place < length
        key = _sort_key(tl.load(score_ptr + start + place, mask=valid, other=0.0))
        if DIGIT > 0:
            valid = valid & ((key >> (shift + 4)) == (threshold >> (shift + 4)))
        digit = (key >> shift) & 15
        one = tl.where(valid, 1, 0).to(tl.uint32) << ((digit & 3) * 8)
        word = digit >> 2
        word0 += tl.where(word == 0, one, 0).to(tl.uint32)
        word1 += tl.where(word == 1, one, 0).to(tl.uint32)
        word2 += tl.where(word == 2, one, 0).to(tl.uint32)
        word3 += tl.where(word == 3, one, 0).to(tl.uint32)
    bins = tl.arange(0, 16)
    counts = _spread(word0, bins, 0) + _spread(word1, bins, 1) + _spread(word2, bins, 2) + _spread(word3, bins, 3)
    tl.atomic_add(histogram_ptr + (row * NIBBLES + DIGIT) * 16 + bins, counts, mask=counts > 0, sem="relaxed")


@triton.jit
def _spread(word, bins, PLACE: tl.constexpr):
    """The four bytes of words, added up over all of them, in bins ``4 * PLACE .. 4 * PLACE + 3``; 0 in the others."""
    even = tl.sum((word & 0x00FF00FF).to(tl.int32), 0)
    odd = tl.sum(((word >> 8) & 0x00FF00FF).to(tl.int32), 0)
    pair = tl.where((bins & 1) == 0, even, odd)
    value = tl.where((bins & 2) == 0, pair & 0xFFFF, (pair >> 16) & 0xFFFF)
    return tl.where((bins >> 2) == PLACE, value, 0)


@triton.jit(do_not_specialize=["k", "capacity"])
def _refine_kernel(
    score_ptr, offset_ptr, row_k_ptr, histogram_ptr,
    least_ptr,  # int64 [rows]: the least key of the candidates
    candidate_ptr,  # int64 [rows, capacity]
    found_ptr,  # int32 [rows], zeros: how many candidates a row has so far
    count, k, capacity, stride_row, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row: says from which key on scores are candidates.

    Where the bin of the threshold holds too many, it goes on to the last bit, and takes as many of the equal keys as
    are wanted, in the order of their places, itself: slow, and rare but for rows of many equal scores.
    """
    row = tl.program_id(0).to(tl.int64)
    start, length, wanted = _row_extent(row, offset_ptr, row_k_ptr, count, k, stride_row)
    threshold, remaining, there = _threshold(histogram_ptr, row, wanted, NIBBLES)
    least = threshold.to(tl.int64)
    if wanted == 0:
        least = tl.full([], 0x100000000, tl.int64)
    elif wanted - remaining + there > capacity:
        threshold, remaining, there = _row_threshold(score_ptr, start, length, threshold, remaining, 2, BLOCK)
        least = threshold.to(tl.int64) + 1
        equal_before = tl.zeros([], tl.int32)
        for first in range(0, length, BLOCK):
            place = first + tl.arange(0, BLOCK)
            key = _sort_key(tl.load(score_ptr + start + place, mask=place < length, other=0.0))
            equal = ((place < length) & (key == threshold)).to(tl.int32)
            rank = equal_before + tl.cumsum(equal, 0) - equal
            slot = candidate_ptr + row * capacity + rank
            tl.store(slot, _candidate(key, place), mask=(equal != 0) & (rank < remaining))
            equal_before += tl.sum(equal, 0)
        tl.store(found_ptr + row, remaining)
    tl.store(least_ptr + row, least)


@triton.jit(do_not_specialize=["k", "capacity"])
def _gather_kernel(
    score_ptr, offset_ptr, row_k_ptr, least_ptr, candidate_ptr, found_ptr,
    count, k, capacity, stride_row, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (row, block): writes the block's candidates behind those that are there, in whatever order."""
    row = tl.program_id(0).to(tl.int64)
    start, length, _ = _row_extent(row, offset_ptr, row_k_ptr, count, k, stride_row)
    first = tl.program_id(1) * BLOCK
    if first >= length:
        return
    place = first + tl.arange(0, BLOCK)
    key = _sort_key(tl.load(score_ptr + start + place, mask=place < length, other=0.0))
    taken = ((place < length) & (key.to(tl.int64) >= tl.load(least_ptr + row))).to(tl.int32)
    number = tl.sum(taken, 0)
    if number > 0:
        before = tl.atomic_add(found_ptr + row, number, sem="relaxed")
        slot = before + tl.cumsum(taken, 0) - taken
        tl.store(candidate_ptr + row * capacity + slot, _candidate(key, place), mask=taken != 0)


@triton.jit(do_not_specialize=["count", "k", "capacity"])
def _rank_kernel(
    candidate_ptr, found_ptr, offset_ptr, row_k_ptr,
    chosen_ptr,  # int64 [rows, k]
    count, k, capacity, BLOCK: tl.constexpr, BLOCK_OTHER: tl.constexpr,
):  # fmt: skip
    """Program (row, block of candidates): stores the place of each at the number of candidates that go before it.

    Those beyond what the row wants are dropped, and places of the result beyond it get -1. Counts stay apart per column
    until the end: one reduction in all.
    """
    row = tl.program_id(0).to(tl.int64)
    _, _, wanted = _row_extent(row, offset_ptr, row_k_ptr, count, k, 0)
    found = tl.load(found_ptr + row)
    first = tl.program_id(1) * BLOCK
    slot = first + tl.arange(0, BLOCK)
    candidates = candidate_ptr + row * capacity
    own = tl.load(candidates + slot, mask=slot < found, other=0)
    before = tl.zeros([BLOCK, BLOCK_OTHER], tl.int32)
    for first_other in range(0, tl.where(first < found, found, 0), BLOCK_OTHER):
        other = first_other + tl.arange(0, BLOCK_OTHER)
        others = tl.load(candidates + other, mask=other < found, other=-(2**63))
        before += (others[None, :] > own[:, None]).to(tl.int32)
    rank = tl.sum(before, 1)
    place = 0xFFFFFFFF - (own & 0xFFFFFFFF)
    tl.store(chosen_ptr + row * k + rank, place, mask=(slot < found) & (rank < wanted))
    tl.store(chosen_ptr + row * k + slot, tl.full([BLOCK], -1, tl.int64), mask=(slot >= wanted) & (slot < k))
