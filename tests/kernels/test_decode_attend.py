"""decode_attend over ragged rows, against a plain float64 bookkeeping of sets."""

from itertools import accumulate

import pytest
import torch

from kvcompress.engine.store import SlotStore
from kvcompress.kernels.compact.reference import Packed, Slots
from kvcompress.kernels.decode_attend.reference import Eviction, decode_attend_reference
from kvcompress.kernels.window_scores.reference import AttentionSpec

LENGTHS = [9, 9, 12, 5]  # ragged: rows of different length
GROUP, DIM = 3, 8


def make_store(dtype=torch.float64) -> SlotStore:
    total = sum(LENGTHS)
    positions = torch.cat([torch.cat([torch.arange(n - 1), torch.tensor([-1])]) for n in LENGTHS])
    slots = Slots(
        torch.randn(total, DIM, dtype=dtype), torch.randn(total, DIM, dtype=dtype), positions, torch.rand(total)
    )
    offsets = torch.tensor([0, *accumulate(LENGTHS)])
    return SlotStore(Packed(slots, offsets), list(LENGTHS), kv_heads=2, backend="torch")


def rows_as_dicts(store: SlotStore) -> list[dict[int, tuple[torch.Tensor, torch.Tensor, float]]]:
    rows, start = [], 0
    for length in store.lengths:
        row = {}
        for slot in range(start, start + length):
            at = int(store.slots.positions[slot])
            if at >= 0:
                row[at] = (
                    store.slots.keys[slot].clone(),
                    store.slots.values[slot].clone(),
                    float(store.slots.scores[slot]),
                )
        rows.append(row)
        start += length
    return rows


RULES = {
    "probability": Eviction("probability", window_size=2),
    "ema": Eviction("running", decay=0.9, window_size=2),
    "accumulate-sinks": Eviction("running", decay=1.0, window_size=2, sink_tokens=1),
    "position-sinks": Eviction("position", window_size=1, sink_tokens=2),
    "stored": Eviction("stored", window_size=2),
}


@pytest.mark.parametrize(
    "spec",
    [
        AttentionSpec(0.3),
        AttentionSpec(0.3, softcap=2.0),
        AttentionSpec(0.3, sinks=torch.linspace(-1, 1, 6, dtype=torch.float64)),
    ],
    ids=["plain", "softcap", "sinks"],
)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_two_hundred_steps_equal_plain_bookkeeping(rule, spec) -> None:
    store = make_store()
    rows = rows_as_dicts(store)
    position = 20
    for _ in range(200):
        query = torch.randn(len(LENGTHS), GROUP, DIM, dtype=torch.float64)
        key, value = torch.randn(2, len(LENGTHS), DIM, dtype=torch.float64)
        new_score = torch.rand(len(LENGTHS))
        output, _ = decode_attend_reference(
            query, key, value, store.slots, store.next_slot, store.row_offsets, store.runs, position,
            spec=spec, eviction=rule, new_score=new_score,
        )  # fmt: skip
        for r, row in enumerate(rows):
            row[position] = (key[r].clone(), value[r].clone(), float(new_score[r]))
            expected = plain_step(row, query[r], r, position, spec, rule)
            torch.testing.assert_close(output[r], expected, rtol=1e-10, atol=1e-12)
        for row, now in zip(rows, rows_as_dicts(store), strict=True):
            assert sorted(row) == sorted(now)
        position += 1


def plain_step(row, query, r, position, spec, rule) -> torch.Tensor:
    at = sorted(row)
    keys = torch.stack([row[p][0] for p in at])
    values = torch.stack([row[p][1] for p in at])
    logits = query @ keys.T * spec.scaling
    if spec.softcap is not None:
        logits = torch.tanh(logits / spec.softcap) * spec.softcap
    if spec.sinks is not None:
        sinks = spec.sinks.view(2, GROUP)[r % 2]
        p = torch.cat([logits, sinks[:, None]], 1).softmax(-1)[:, :-1]
    else:
        p = logits.softmax(-1)
    probability = p.mean(0)
    if rule.order == "running":
        for i, token in enumerate(at):
            score = torch.tensor(row[token][2], dtype=torch.float32) * rule.decay + probability[i].float()
            row[token] = (*row[token][:2], float(score))
    if len(row) > LENGTHS[r] - 1:
        free = [p for p in at if p <= position - rule.window_size and p >= rule.sink_tokens]
        least = {
            "probability": lambda token: float(probability[at.index(token)]),
            "running": lambda token: row[token][2],
            "stored": lambda token: row[token][2],
            "position": lambda token: token,
        }[rule.order]
        del row[min(free, key=least)]
    return p @ values


def test_free_slots_are_taken_before_anything_is_evicted() -> None:
    store = make_store()
    store.grow([3, 0, 0, 0])
    for position in range(20, 23):
        before = [set(row) for row in rows_as_dicts(store)]
        decode_attend_reference(
            torch.randn(4, GROUP, DIM).double(), torch.randn(4, DIM).double(), torch.randn(4, DIM).double(),
            store.slots, store.next_slot, store.row_offsets, store.runs, position,
            spec=AttentionSpec(0.3), eviction=RULES["probability"],
        )  # fmt: skip
        after = [set(row) for row in rows_as_dicts(store)]
        assert after[0] == before[0] | {position}
        assert all(len(after[r]) == len(before[r]) for r in (1, 2, 3))


def test_keep_prompt_evicts_the_oldest_generated_token() -> None:
    store = make_store()
    store.grow([2, 2, 2, 2])
    rule = Eviction("position", window_size=2, keep_prompt=True)
    prompts = [set(row) for row in rows_as_dicts(store)]
    for position in range(20, 40):
        decode_attend_reference(
            torch.randn(4, GROUP, DIM).double(), torch.randn(4, DIM).double(), torch.randn(4, DIM).double(),
            store.slots, store.next_slot, store.row_offsets, store.runs, position,
            spec=AttentionSpec(0.3), eviction=rule, prompt_end=20,
        )  # fmt: skip
    assert [set(row) for row in rows_as_dicts(store)] == [prompt | {38, 39} for prompt in prompts]
