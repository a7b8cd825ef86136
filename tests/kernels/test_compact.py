"""compact: each row's head, tail and free slots, from any strides."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.kernels.compact.reference import Packed, RowPlan, compact_reference

BATCH, HEADS, TOKENS = 2, 3, 9


def arrays(contiguous: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys, values, positions, and scores of all but the last two tokens."""
    keys = torch.randn(BATCH, TOKENS, HEADS, 4).transpose(1, 2)  # the layout of a projection
    values = torch.randn(BATCH, TOKENS, HEADS, 6).transpose(1, 2)
    if contiguous:
        keys, values = keys.contiguous(), values.contiguous()
    positions = torch.arange(TOKENS).expand(BATCH, HEADS, TOKENS)
    return keys, values, positions, torch.rand(BATCH, HEADS, TOKENS - 2)


def token_by_token(data, plan: RowPlan, chosen) -> list[tuple[torch.Tensor, torch.Tensor, int, float] | None]:
    """The definition: what stands in each slot, None for a free one."""
    keys, values, positions, scores = data
    slots: list[tuple[torch.Tensor, torch.Tensor, int, float] | None] = []
    for row, (length, source, head, tail_start, tail) in enumerate(zip(*plan, strict=True)):
        for place in range(length):
            if place >= head + tail:
                slots.append(None)
                continue
            token = place - head + tail_start if place >= head else int(chosen[row, place])
            b, h, t = source // (HEADS * TOKENS), source // TOKENS % HEADS, source % TOKENS + token
            score = float(scores[b, h, t]) if t < scores.shape[-1] else 0.0
            slots.append((keys[b, h, t], values[b, h, t], int(positions[b, h, t]), score))
    return slots


def check(packed: Packed, wanted) -> None:
    assert packed.slots.keys.shape[0] == len(wanted)
    for slot, want in enumerate(wanted):
        key, value, position, score = (array[slot] for array in packed.slots)
        if want is None:
            assert (int(position), float(score), bool(key.any()), bool(value.any())) == (-1, 0.0, False, False)
        else:
            assert torch.equal(key, want[0])
            assert torch.equal(value, want[1])
            assert (int(position), float(score)) == want[2:]


@given(st.booleans(), st.data())
def test_every_slot_holds_what_the_plan_says(contiguous, data) -> None:
    rows = BATCH * HEADS
    head = data.draw(st.lists(st.integers(0, 6), min_size=rows, max_size=rows))
    window = data.draw(st.integers(0, 3))
    spare = data.draw(st.integers(0, 2))
    chosen = torch.stack([torch.randperm(TOKENS - window)[: max(head)] for _ in range(rows)])
    plan = RowPlan(
        lengths=[n + window + spare for n in head],
        source=[row * TOKENS for row in range(rows)],
        head=head,
        tail_start=[TOKENS - window] * rows,
        tail=[window] * rows,
    )
    given_arrays = arrays(contiguous)
    packed = compact_reference(*given_arrays, plan, chosen)
    check(packed, token_by_token(given_arrays, plan, chosen))
    assert packed.row_offsets.diff().tolist() == plan.lengths


@pytest.mark.parametrize("reordered", [False, True])
def test_rows_of_a_store_are_trimmed_and_reordered(reordered) -> None:
    """A flat source: the first tokens of each row stay, those after them up to the tail go."""
    keys, values, positions, scores = torch.randn(7, 4), torch.randn(7, 2), torch.arange(7), torch.rand(7)
    plan = RowPlan(lengths=[3, 2], source=[0, 4], head=[1, 1], tail_start=[2, 2], tail=[2, 1])
    if reordered:
        plan = RowPlan(*(entries[::-1] for entries in plan))
    wanted = [4, 6, 0, 2, 3] if reordered else [0, 2, 3, 4, 6]
    packed = compact_reference(keys, values, positions, scores, plan)
    assert packed.slots.positions.tolist() == wanted
    assert torch.equal(packed.slots.keys, keys[wanted])
    assert torch.equal(packed.slots.values, values[wanted])
    assert torch.equal(packed.slots.scores, scores[wanted])
