"""Device functions that finish a decode step, in whichever kernel: the row's output, its slots' scores, its victim.

Partial results come from other programs, so they are read past the first-level cache (``.cg``), which need not have
seen what was written.
"""

import triton
import triton.language as tl

from kvcompress.kernels.exponentials import exp_of

LARGEST_KEY = tl.constexpr(0x7FFFFFFFFFFFFFFF)
HIGHEST = tl.constexpr(0x7F800000)  # the rank of +inf
LOWEST = tl.constexpr(-0x7F800001)  # the rank of -inf


@triton.jit
def _softmax_of_row(
    partial_softmax_ptr, sinks_ptr, row, head, splits, split_count, kv_heads, GROUP: tl.constexpr,
    MOST_SPLITS: tl.constexpr, ACCURATE: tl.constexpr,
):  # fmt: skip
    """Maximum and sum of exponentials of each head over all splits of a row, its sink logit included."""
    split = tl.arange(0, MOST_SPLITS)
    partial = (row * split_count + split[None, :]) * GROUP + head[:, None]
    there = (head < GROUP)[:, None] & (split < splits)[None, :]
    maxima = tl.load(partial_softmax_ptr + 2 * partial, mask=there, other=-float("inf"), cache_modifier=".cg")
    sums = tl.load(partial_softmax_ptr + 2 * partial + 1, mask=there, other=0.0, cache_modifier=".cg")
    maximum = tl.max(maxima, 1)
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + row % kv_heads * GROUP + head, mask=head < GROUP, other=0.0).to(tl.float32)
        maximum = tl.maximum(maximum, sink)
    maximum = tl.where(head < GROUP, maximum, 0.0)
    total = tl.sum(sums * exp_of(maxima - maximum[:, None], ACCURATE), 1)
    if sinks_ptr is not None:
        total += exp_of(sink - maximum, ACCURATE)
    return maximum, tl.where(head < GROUP, total, 1.0)


@triton.jit
def write_output(
    output_ptr, partial_softmax_ptr, partial_output_ptr, sinks_ptr, row, splits, split_count, kv_heads,
    GROUP: tl.constexpr, OUTPUT_HEADS: tl.constexpr, VALUE_DIM: tl.constexpr, VALUE_PAD: tl.constexpr,
    MOST_SPLITS: tl.constexpr, ACCURATE: tl.constexpr,
):  # fmt: skip
    """Combines the splits of a row into its output, a few heads at a time."""
    dim = tl.arange(0, VALUE_PAD)
    for first_head in range(0, GROUP, OUTPUT_HEADS):
        head = first_head + tl.arange(0, OUTPUT_HEADS)
        maximum, total = _softmax_of_row(
            partial_softmax_ptr, sinks_ptr, row, head, splits, split_count, kv_heads, GROUP, MOST_SPLITS, ACCURATE
        )
        inside = (head < GROUP)[:, None] & (dim < VALUE_DIM)[None, :]
        output = tl.zeros([OUTPUT_HEADS, VALUE_PAD], tl.float32)
        for split in tl.range(0, splits, loop_unroll_factor=4):  # loads that do not wait for each other
            partial = (row * split_count + split) * GROUP + head
            part_max = tl.load(partial_softmax_ptr + 2 * partial, mask=head < GROUP, other=0.0, cache_modifier=".cg")
            part = partial_output_ptr + partial[:, None] * VALUE_DIM + dim[None, :]
            output += exp_of(part_max - maximum, ACCURATE)[:, None] * tl.load(
                part, mask=inside, other=0.0, cache_modifier=".cg"
            )
        to = output_ptr + (row * GROUP + head)[:, None] * VALUE_DIM + dim[None, :]
        tl.store(to, (output / total[:, None]).to(output_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _rank(value):
    """int64 in the range of int32, ordered as the float32 value is; -0 equals +0, NaN is least, as for torch."""
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)
    return tl.where(value == value, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits), -0x80000000).to(tl.int64)


@triton.jit
def _read_slots(
    logits_ptr, positions_ptr, scores_ptr, first, block, end, slot_count, GROUP: tl.constexpr,
    ALL_HEADS: tl.constexpr, SLOT_BLOCK: tl.constexpr, ORDER: tl.constexpr,
):  # fmt: skip
    """Logits ``[ALL_HEADS, SLOT_BLOCK]``, positions and stored scores of a block of a row's places."""
    head = tl.arange(0, ALL_HEADS)
    place = block + tl.arange(0, SLOT_BLOCK)
    slot = first + place
    inside = place < end
    logits_at = logits_ptr + head[:, None].to(tl.int64) * slot_count + slot[None, :]
    asked = (head < GROUP)[:, None] & inside[None, :]
    logits = tl.load(logits_at, mask=asked, other=-float("inf"), cache_modifier=".cg")
    held = tl.load(positions_ptr + slot, mask=inside, other=-1, cache_modifier=".cg")
    score = tl.zeros([SLOT_BLOCK], tl.float32)
    if ORDER == "running" or ORDER == "stored":
        score = tl.load(scores_ptr + slot, mask=inside, other=0.0, cache_modifier=".cg")
    return logits, held, score


@triton.jit
def update_slots(
    logits_ptr, partial_softmax_ptr, probability_ptr, positions_ptr, scores_ptr, row_start_ptr, sinks_ptr,
    position, row, first, start, end, splits, slot_count, split_count, sliding_window, kv_heads, decay, window_size,
    sink_tokens, prompt_end, GROUP: tl.constexpr, ALL_HEADS: tl.constexpr, SLOT_BLOCK: tl.constexpr,
    MOST_SPLITS: tl.constexpr, ORDER: tl.constexpr, ACCURATE: tl.constexpr,
):  # fmt: skip
    """Probabilities and running scores of places ``start`` to ``end`` of a row.

    Returns the least key, (rank of what is compared, place) in one int64: the least place among equals.
    """
    # A block is read before the one before it is worked on, and the first before the softmax is known: its loads wait
    # for nothing else.
    logits, held, score = _read_slots(
        logits_ptr, positions_ptr, scores_ptr, first, start, end, slot_count, GROUP, ALL_HEADS, SLOT_BLOCK, ORDER
    )
    head = tl.arange(0, ALL_HEADS)
    maximum, total = _softmax_of_row(
        partial_softmax_ptr, sinks_ptr, row, head, splits, split_count, kv_heads, GROUP, MOST_SPLITS, ACCURATE
    )
    share = 1.0 / (total * GROUP)
    kept_below = tl.maximum(sink_tokens, prompt_end).to(tl.int64)
    if row_start_ptr is not None:
        kept_below = tl.maximum(tl.load(row_start_ptr + row) + sink_tokens, prompt_end)
    oldest = tl.maximum(position - sliding_window + 1, 0)
    least = tl.full([SLOT_BLOCK], LARGEST_KEY, tl.int64)
    for block in range(start, end, SLOT_BLOCK):
        place = block + tl.arange(0, SLOT_BLOCK)
        slot = first + place
        inside = place < end
        next_logits, next_held, next_score = _read_slots(
            logits_ptr, positions_ptr, scores_ptr, first, block + SLOT_BLOCK, end, slot_count, GROUP, ALL_HEADS,
            SLOT_BLOCK, ORDER,
        )  # fmt: skip
        probability = tl.sum(exp_of(logits - maximum[:, None], ACCURATE) * share[:, None], 0)
        tl.store(probability_ptr + slot, probability, mask=inside)
        if ORDER == "position":
            rank = held
        elif ORDER == "none":
            rank = tl.full([SLOT_BLOCK], HIGHEST, tl.int64)
        elif ORDER == "probability":
            rank = _rank(probability)
        else:
            if ORDER == "running":
                score = score * decay + probability
                tl.store(scores_ptr + slot, score, mask=inside)
            rank = _rank(score)
        rank = tl.where((held > position - window_size) | (held < kept_below), HIGHEST, rank)
        rank = tl.where(held < oldest, LOWEST, rank)  # free, or out of the window: goes before anything is evicted
        least = tl.minimum(least, tl.where(inside, (rank << 32) | place.to(tl.int64), LARGEST_KEY))
        logits, held, score = next_logits, next_held, next_score
    return tl.min(least, 0)


@triton.jit
def free_victim(least, positions_ptr, next_slot_ptr, row, first):
    """Makes the slot of the least key the row's next one, and free."""
    victim = first + (least & 0xFFFFFFFF)
    tl.store(next_slot_ptr + row, victim)
    tl.store(positions_ptr + victim, -1)
