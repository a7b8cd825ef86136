"""One decode step on the slot store, in two launches: attend per split of a row's slots, then finish per row.

A row's slots are cut into splits, so that few rows fill many processors. ``_attend_slots_kernel`` runs an online
softmax over each split and leaves partial results; ``_finish_kernel`` combines them into the output, gives every slot
its probability, updates running scores and picks the victim. The programs of one launch never touch each other's slots:
there is no race. Given ``arrivals``, one launch does it all: the program of a row that arrives last finishes the row.
A split's size depends on its row's length alone: neither other rows nor the device change a result.

Logits are natural, and the maximum is taken off before the exponential: the larger a weight, the less is rounded off
its exponent (logits times log2 e would be rounded at their full size).
"""

import triton
import triton.language as tl

from kvcompress.kernels.decode_attend.finish import free_victim, update_slots, write_output
from kvcompress.kernels.exponentials import exp_of
from kvcompress.kernels.softcap import softcapped

# They differ from call to call or from layer to layer: specialising on their values would compile again and again.
COUNTS = ["position", "slot_count", "kv_heads", "sliding_window", "window_size", "sink_tokens", "prompt_end"]


@triton.jit
def _split_size(length, LEAST_SPLIT: tl.constexpr, MOST_SPLITS: tl.constexpr):
    """Slots per split: a multiple of LEAST_SPLIT, so large that a row has at most MOST_SPLITS of them."""
    return LEAST_SPLIT * tl.cdiv(length, LEAST_SPLIT * MOST_SPLITS)


@triton.jit
def _capped(logits, softcap):
    return logits if softcap is None else softcapped(logits, softcap)


@triton.jit
def _block_logits(
    query, query_at, is_head, keys_ptr, slot, held, stride_k, scaling, HEAD_DIM: tl.constexpr, HEAD_PAD: tl.constexpr,
    BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Logits of a block of slots; in float32 by blocks of dimensions, each scaled before it is added.

    One sum through all dimensions, which is what the compiler makes of blocks that are only added, rounds the more the
    longer it is.
    """
    if BLOCK_D == HEAD_PAD:
        dim = tl.arange(0, HEAD_PAD)
        key_at = keys_ptr + slot[:, None] * stride_k + dim[None, :]
        key = tl.load(key_at, mask=held[:, None] & (dim < HEAD_DIM)[None, :], other=0.0)
        if UPCAST:
            key = key.to(tl.float32)
        logits = tl.dot(query, tl.trans(key), input_precision="ieee") * scaling
    else:
        logits = tl.zeros([query.shape[0], held.shape[0]], tl.float32)
        for start in range(0, HEAD_DIM, BLOCK_D):
            dim = start + tl.arange(0, BLOCK_D)
            part = tl.load(query_at + dim[None, :], mask=is_head[:, None] & (dim < HEAD_DIM)[None, :], other=0.0)
            key_at = keys_ptr + slot[:, None] * stride_k + dim[None, :]
            key = tl.load(key_at, mask=held[:, None] & (dim < HEAD_DIM)[None, :], other=0.0)
            logits += tl.dot(part, tl.trans(key), input_precision="ieee") * scaling
    return logits


@triton.jit(do_not_specialize=COUNTS)
def _attend_slots_kernel(
    query_ptr, new_key_ptr, new_value_ptr, new_score_ptr, keys_ptr, values_ptr, positions_ptr, scores_ptr,
    next_slot_ptr, row_offsets_ptr, position_ptr, logits_ptr, partial_softmax_ptr, partial_output_ptr,
    output_ptr, probability_ptr, row_start_ptr, sinks_ptr, arrivals_ptr,
    position, slot_count, kv_heads, sliding_window, window_size, sink_tokens, prompt_end, scaling, softcap,
    decay, stride_qr, stride_qg, stride_nk, stride_nv, stride_k, stride_v, GROUP: tl.constexpr, HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, BLOCK_D: tl.constexpr, VALUE_DIM: tl.constexpr,
    VALUE_PAD: tl.constexpr, BLOCK_N: tl.constexpr, LEAST_SPLIT: tl.constexpr, MOST_SPLITS: tl.constexpr,
    UPCAST: tl.constexpr, ALL_HEADS: tl.constexpr, OUTPUT_HEADS: tl.constexpr, SLOT_BLOCK: tl.constexpr,
    ORDER: tl.constexpr,
):  # fmt: skip
    """Program (row, split, HEADS heads of the group); splits beyond the end of their row do nothing.

    The program whose split holds the next slot writes the new token there. What ``_finish_kernel`` takes is None but
    for ``arrivals``, a counter per row: with it, the last program of a row finishes the row.
    """
    row, split, split_count = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    first = tl.load(row_offsets_ptr + row)
    length = (tl.load(row_offsets_ptr + row + 1) - first).to(tl.int32)
    size = _split_size(length, LEAST_SPLIT, MOST_SPLITS)
    start = split * size
    if start >= length:
        return
    end = tl.minimum(start + size, length)
    position = (position if position_ptr is None else tl.load(position_ptr)).to(tl.int64)
    head = tl.program_id(2) * HEADS + tl.arange(0, HEADS)
    dim, value_dim = tl.arange(0, HEAD_PAD), tl.arange(0, VALUE_PAD)
    is_head, is_dim, is_value = head < GROUP, dim < HEAD_DIM, value_dim < VALUE_DIM
    query_at = query_ptr + row * stride_qr + head[:, None] * stride_qg
    query = tl.load(query_at + dim[None, :], mask=is_head[:, None] & is_dim[None, :], other=0.0)
    new_key = tl.load(new_key_ptr + row * stride_nk + dim, mask=is_dim, other=0.0)
    new_value = tl.load(new_value_ptr + row * stride_nv + value_dim, mask=is_value, other=0.0)
    next_slot = tl.load(next_slot_ptr + row)
    fresh = (next_slot - first).to(tl.int32)
    owner = (fresh >= start) & (fresh < end)
    ACCURATE: tl.constexpr = keys_ptr.dtype.element_ty == tl.float32

    # The new token is in registers: it opens the online softmax of its split, and the loop leaves its slot out. So
    # nothing reads what is written at the end.
    products = tl.sum(query.to(tl.float32) * new_key.to(tl.float32)[None, :], 1)
    new_logit = _capped(products * scaling, softcap)
    maximum = tl.where(owner, new_logit, -float("inf"))
    total = tl.where(owner, tl.full([HEADS], 1.0, tl.float32), 0.0)
    output = tl.where(owner, tl.zeros([HEADS, VALUE_PAD], tl.float32) + new_value.to(tl.float32)[None, :], 0.0)
    if UPCAST:  # the interpreter multiplies the bits of 16-bit floats
        query = query.to(tl.float32)
    oldest = tl.maximum(position - sliding_window + 1, 0)  # a free slot is at position -1
    for block in range(start, end, BLOCK_N):
        place = block + tl.arange(0, BLOCK_N)
        slot = first + place
        held = (place < end) & (place != fresh)
        visible = tl.load(positions_ptr + slot, mask=held, other=-1) >= oldest
        logits = _block_logits(
            query, query_at, is_head, keys_ptr, slot, held, stride_k, scaling, HEAD_DIM, HEAD_PAD, BLOCK_D, UPCAST
        )
        value_at = values_ptr + slot[:, None] * stride_v + value_dim[None, :]
        value = tl.load(value_at, mask=held[:, None] & is_value[None, :], other=0.0)
        logits = tl.where(visible[None, :], _capped(logits, softcap), -float("inf"))
        logits_at = logits_ptr + head[:, None].to(tl.int64) * slot_count + slot[None, :]
        tl.store(logits_at, logits, mask=is_head[:, None] & held[None, :])
        new_maximum = tl.maximum(maximum, tl.max(logits, 1))
        shift = tl.where(new_maximum == -float("inf"), 0.0, new_maximum)  # nothing seen so far: no inf - inf
        weights = exp_of(logits - shift[:, None], ACCURATE)
        correction = exp_of(maximum - shift, ACCURATE)
        total = total * correction + tl.sum(weights, 1)
        weights = weights.to(value.dtype)
        if UPCAST:
            weights, value = weights.to(tl.float32), value.to(tl.float32)
        output = tl.dot(weights, value, output * correction[:, None], input_precision="ieee")
        maximum = new_maximum
    partial = (row * split_count + split) * GROUP + head
    tl.store(partial_softmax_ptr + 2 * partial, maximum, mask=is_head)
    tl.store(partial_softmax_ptr + 2 * partial + 1, total, mask=is_head)
    output_at = partial_output_ptr + partial[:, None] * VALUE_DIM + value_dim[None, :]
    tl.store(output_at, output, mask=is_head[:, None] & is_value[None, :])
    if owner:
        tl.store(logits_ptr + head.to(tl.int64) * slot_count + next_slot, new_logit, mask=is_head)
        if tl.program_id(2) == 0:
            tl.store(keys_ptr + next_slot * stride_k + dim, new_key, mask=is_dim)
            tl.store(values_ptr + next_slot * stride_v + value_dim, new_value, mask=is_value)
            tl.store(positions_ptr + next_slot, position)
            tl.store(scores_ptr + next_slot, 0.0 if new_score_ptr is None else tl.load(new_score_ptr + row))
    if arrivals_ptr is not None:
        splits = tl.cdiv(length, size)
        tl.debug_barrier()  # every thread has written before the program counts as arrived
        arrived = tl.atomic_add(arrivals_ptr + row, 1, sem="acq_rel")
        if arrived == splits * tl.num_programs(2) - 1:
            write_output(
                output_ptr, partial_softmax_ptr, partial_output_ptr, sinks_ptr, row, splits, split_count,
                kv_heads, GROUP, OUTPUT_HEADS, VALUE_DIM, VALUE_PAD, MOST_SPLITS, ACCURATE,
            )  # fmt: skip
            least = update_slots(
                logits_ptr, partial_softmax_ptr, probability_ptr, positions_ptr, scores_ptr, row_start_ptr, sinks_ptr,
                position, row, first, 0, length, splits, slot_count, split_count, sliding_window, kv_heads, decay,
                window_size, sink_tokens, prompt_end, GROUP, ALL_HEADS, SLOT_BLOCK, MOST_SPLITS, ORDER, ACCURATE,
            )  # fmt: skip
            tl.debug_barrier()
            free_victim(least, positions_ptr, next_slot_ptr, row, first)
            tl.store(arrivals_ptr + row, 0)  # ready for the next step


@triton.jit(do_not_specialize=[*COUNTS, "split_count"])
def _finish_kernel(
    positions_ptr, scores_ptr, next_slot_ptr, row_offsets_ptr, position_ptr, logits_ptr, partial_softmax_ptr,
    partial_output_ptr, output_ptr, probability_ptr, row_start_ptr, sinks_ptr, least_ptr,
    position, slot_count, split_count, kv_heads, sliding_window, window_size, sink_tokens, prompt_end, decay,
    GROUP: tl.constexpr, VALUE_DIM: tl.constexpr, VALUE_PAD: tl.constexpr, LEAST_SPLIT: tl.constexpr,
    MOST_SPLITS: tl.constexpr, ALL_HEADS: tl.constexpr, OUTPUT_HEADS: tl.constexpr, SLOT_BLOCK: tl.constexpr,
    CHUNK: tl.constexpr, ORDER: tl.constexpr,
):  # fmt: skip
    """Program (row, part): part 0 writes the output, each other one works on a chunk of the row's slots.

    Without ``least`` a row has one chunk, whose program frees the victim; with it, each chunk leaves its least key.
    """
    ACCURATE: tl.constexpr = output_ptr.dtype.element_ty == tl.float32
    row = tl.program_id(0).to(tl.int64)
    first = tl.load(row_offsets_ptr + row)
    length = (tl.load(row_offsets_ptr + row + 1) - first).to(tl.int32)
    splits = tl.cdiv(length, _split_size(length, LEAST_SPLIT, MOST_SPLITS))
    position = (position if position_ptr is None else tl.load(position_ptr)).to(tl.int64)  # a branch cannot widen it
    if tl.program_id(1) == 0:
        write_output(
            output_ptr, partial_softmax_ptr, partial_output_ptr, sinks_ptr, row, splits, split_count,
            kv_heads, GROUP, OUTPUT_HEADS, VALUE_DIM, VALUE_PAD, MOST_SPLITS, ACCURATE,
        )  # fmt: skip
    else:
        chunk = tl.program_id(1) - 1
        start = chunk * CHUNK
        if start < length:
            least = update_slots(
                logits_ptr, partial_softmax_ptr, probability_ptr, positions_ptr, scores_ptr, row_start_ptr, sinks_ptr,
                position, row, first, start, tl.minimum(start + CHUNK, length), splits, slot_count, split_count,
                sliding_window, kv_heads, decay, window_size, sink_tokens, prompt_end, GROUP, ALL_HEADS, SLOT_BLOCK,
                MOST_SPLITS, ORDER, ACCURATE,
            )  # fmt: skip
            if least_ptr is not None:
                tl.store(least_ptr + row * (tl.num_programs(1) - 1) + chunk, least)
            else:
                tl.debug_barrier()  # every thread has read the positions
                free_victim(least, positions_ptr, next_slot_ptr, row, first)


@triton.jit(do_not_specialize=["chunk_count"])
def _pick_victims_kernel(least_ptr, positions_ptr, next_slot_ptr, row_offsets_ptr, chunk_count, CHUNK: tl.constexpr):
    """Program (row): frees the least of the chunks' victims."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.load(row_offsets_ptr + row)
    length = (tl.load(row_offsets_ptr + row + 1) - first).to(tl.int32)
    least = tl.load(least_ptr + row * chunk_count)
    for chunk in range(1, tl.cdiv(length, CHUNK)):
        least = tl.minimum(least, tl.load(least_ptr + row * chunk_count + chunk))
    free_victim(least, positions_ptr, next_slot_ptr, row, first)
