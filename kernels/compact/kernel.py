"""Packs rows in one launch: keys, values, positions and scores of head and tail, and the free slots behind them.

Nothing is computed, so the arrays travel as integers of their size: one compilation serves every dtype of that size,
and every bit arrives, those of a NaN too.
"""

import triton
import triton.language as tl


@triton.jit
def _copy_tile(
    from_ptr, to_ptr, token, slot, live, copied, stride_token, SIZE: tl.constexpr, SIZE_PADDED: tl.constexpr
):
    """Copies vectors ``token`` to vectors ``slot``; where not ``copied``, writes zeros."""
    dim = tl.arange(0, SIZE_PADDED)
    inside = dim[None, :] < SIZE
    source = from_ptr + token[:, None] * stride_token + dim[None, :]
    vectors = tl.load(source, mask=copied[:, None] & inside, other=0)
    tl.store(to_ptr + slot[:, None] * SIZE + dim[None, :], vectors, mask=live[:, None] & inside)


# Only the strides of keys and values may be specialized: whether they are multiples of 16 decides how wide the loads
# are. The other numbers change with every prompt, and loads of scattered single numbers gain nothing.
@triton.jit(
    do_not_specialize=[
        *("rows_padded", "most", "heads", "tokens", "scored"),
        *("stride_pb", "stride_ph", "stride_pt", "stride_sb", "stride_sh", "stride_st", "stride_chosen"),
    ]
)
def _compact_kernel(
    key_ptr,
    value_ptr,
    position_ptr,
    score_ptr,
    plan_ptr,
    chosen_ptr,
    new_key_ptr,
    new_value_ptr,
    new_position_ptr,
    new_score_ptr,
    rows_padded,
    most,
    heads,
    tokens,
    scored,
    stride_kb,
    stride_kh,
    stride_kt,
    stride_vb,
    stride_vh,
    stride_vt,
    stride_pb,
    stride_ph,
    stride_pt,
    stride_sb,
    stride_sh,
    stride_st,
    stride_chosen,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_PADDED: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_DIM_PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Program (row, block of its slots); the plan's lines are offsets, lengths, source, head, tail start, tail."""
    row = tl.program_id(0).to(tl.int64)
    offset = tl.load(plan_ptr + row)
    length = (tl.load(plan_ptr + row + 1) - offset).to(tl.int32)
    first = tl.program_id(1) * BLOCK_M
    if first >= length:
        return
    source = tl.load(plan_ptr + 2 * rows_padded + row)
    head = tl.load(plan_ptr + 3 * rows_padded + row).to(tl.int32)
    tail_start = tl.load(plan_ptr + 4 * rows_padded + row)
    tail = tl.load(plan_ptr + 5 * rows_padded + row).to(tl.int32)

    place = first + tl.arange(0, BLOCK_M)
    live = place < length
    copied = live & (place < head + tail)
    token = place.to(tl.int64)
    if chosen_ptr is not None:
        column = tl.minimum(place, most - 1)
        token = tl.load(chosen_ptr + row * stride_chosen + column, mask=live & (place < head), other=0)
    token = tl.where(place < head, token, place - head + tail_start)
    # A source is one sequence: which, is the same for all its tokens. `token` counts from the sequence's start.
    token += source % tokens
    sequence = source // tokens
    b = sequence // heads
    h = sequence % heads
    slot = offset + place

    position = tl.load(position_ptr + b * stride_pb + h * stride_ph + token * stride_pt, mask=copied, other=-1)
    tl.store(new_position_ptr + slot, position, mask=live)
    has_score = copied & (token < scored)
    score = tl.load(score_ptr + b * stride_sb + h * stride_sh + token * stride_st, mask=has_score, other=0.0)
    tl.store(new_score_ptr + slot, score, mask=live)
    from_key = key_ptr + b * stride_kb + h * stride_kh
    _copy_tile(from_key, new_key_ptr, token, slot, live, copied, stride_kt, HEAD_DIM, HEAD_DIM_PADDED)
    from_value = value_ptr + b * stride_vb + h * stride_vh
    _copy_tile(from_value, new_value_ptr, token, slot, live, copied, stride_vt, VALUE_DIM, VALUE_DIM_PADDED)
