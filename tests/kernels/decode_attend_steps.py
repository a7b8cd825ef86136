"""Stores, inputs and checks of decode_attend's kernels, on any device."""

from itertools import accumulate
from typing import Any, NamedTuple

import torch

from kvcompress.kernels.compact.reference import Slots
from kvcompress.kernels.decode_attend.op import decode_attend
from kvcompress.kernels.decode_attend.reference import Eviction, Run, decode_attend_reference
from kvcompress.kernels.window_scores.reference import AttentionSpec
from tests.tolerances import assert_as_accurate, assert_close

SPECIAL_SCORES = torch.tensor([float("nan"), float("inf"), float("-inf"), -0.0, 0.0, 1e-42, -1.0, 1.0])


class State(NamedTuple):
    """A store and what belongs to it."""

    slots: Slots
    next_slot: torch.Tensor
    row_offsets: torch.Tensor
    runs: tuple[Run, ...]

    def copy(self) -> "State":
        return self._replace(slots=Slots(*(x.clone() for x in self.slots)), next_slot=self.next_slot.clone())

    def rows(self, chosen: list[int]) -> "State":
        """The store of some rows alone."""
        starts = self.row_offsets.tolist()
        lengths = [starts[r + 1] - starts[r] for r in chosen]
        places = torch.cat([torch.arange(starts[r], starts[r + 1]) for r in chosen]).to(self.row_offsets.device)
        offsets = torch.tensor([0, *accumulate(lengths)], device=places.device)
        next_slot = self.next_slot[chosen] - self.row_offsets[:-1][chosen] + offsets[:-1]
        return State(Slots(*(x[places] for x in self.slots)), next_slot, offsets, runs_of(lengths))


class Case(NamedTuple):
    """One way to decode."""

    eviction: Eviction
    group: int = 4
    head_dim: int = 64
    value_dim: int = 64
    dtype: torch.dtype = torch.float32
    lengths: tuple[int, ...] = (13, 22)
    softcap: float | None = None
    learned_sinks: bool = False
    sliding_window: int | None = None
    free: int = 1
    on_device: bool = False  # the position of the new token
    new_score: bool = False
    row_start: bool = False
    prompt_end: int = 0
    one_launch: bool = False


def runs_of(lengths: list[int] | tuple[int, ...]) -> tuple[Run, ...]:
    starts = [0, *accumulate(lengths)]
    return tuple(Run(row, 1, starts[row], length) for row, length in enumerate(lengths))


def make_state(case: Case, device: str) -> State:
    """Rows with ``free`` free slots at their ends and their tokens in no order."""
    total = sum(case.lengths)
    tokens = [torch.randperm(n - case.free) + (5 if case.row_start else 0) for n in case.lengths]
    positions = torch.cat([torch.cat([row, torch.full((case.free,), -1)]) for row in tokens])
    slots = Slots(
        torch.randn(total, case.head_dim, dtype=case.dtype),
        torch.randn(total, case.value_dim, dtype=case.dtype),
        positions,
        torch.rand(total),
    )
    offsets = torch.tensor([0, *accumulate(case.lengths)])
    state = State(slots, offsets[1:] - case.free, offsets, runs_of(case.lengths))
    return State(Slots(*(x.to(device) for x in slots)), state.next_slot.to(device), offsets.to(device), state.runs)


def make_inputs(case: Case, device: str) -> list[torch.Tensor]:
    rows = len(case.lengths)
    query = torch.randn(rows, case.group, case.head_dim, dtype=case.dtype)
    return [
        x.to(device)
        for x in (query, torch.randn_like(query[:, 0]), torch.randn(rows, case.value_dim, dtype=case.dtype))
    ]


def options(case: Case, device: str) -> dict[str, Any]:
    rows = len(case.lengths)
    sinks = torch.linspace(-1, 2, 2 * case.group, device=device, dtype=case.dtype) if case.learned_sinks else None
    return {
        "spec": AttentionSpec(0.3, case.softcap, sinks, case.sliding_window),
        "eviction": case.eviction,
        "new_score": torch.rand(rows).to(device) if case.new_score else None,
        "row_start": torch.full((rows,), 5, device=device) if case.row_start else None,
        "prompt_end": case.prompt_end,
    }


def check_steps(case: Case, device: str, steps: int) -> None:
    """Decodes with kernel and reference side by side, from one state."""
    expected = make_state(case, device)
    actual = expected.copy()
    arrivals = torch.zeros(len(case.lengths), dtype=torch.int32, device=device) if case.one_launch else None
    for position in range(max(case.lengths) + 5, max(case.lengths) + 5 + steps):
        inputs, chosen = make_inputs(case, device), options(case, device)
        at = torch.tensor(position, device=device) if case.on_device else position
        output, probability = decode_attend_reference(*inputs, *expected, position, **chosen)
        got_output, got_probability = decode_attend(*inputs, *actual, at, **chosen, arrivals=arrivals)
        assert_close(got_output, output)
        assert got_output.dtype == case.dtype
        assert_close(got_probability, probability)
        assert_same_state(actual, expected)
    assert arrivals is None or not arrivals.any()


def assert_same_state(actual: State, expected: State) -> None:
    assert torch.equal(actual.next_slot, expected.next_slot)
    assert torch.equal(actual.slots.positions, expected.slots.positions)
    assert torch.equal(actual.slots.keys, expected.slots.keys)
    assert torch.equal(actual.slots.values, expected.slots.values)
    assert_close(actual.slots.scores, expected.slots.scores)


def step(case: Case, state: State, inputs: list[torch.Tensor], position: int, **more: Any) -> tuple[torch.Tensor, ...]:
    """One step of the kernel on a copy of a state: output, probability and all that was modified."""
    state = state.copy()
    results = decode_attend(*inputs, *state, position, **{**options(case, inputs[0].device.type), **more})
    return (*results, *state.slots, state.next_slot)


def assert_equal(actual: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


def check_row_independence(case: Case, device: str) -> None:
    """Rows in another order, and one row alone, give the same bits."""
    state, inputs = make_state(case, device), make_inputs(case, device)
    together = step(case, state, inputs, 200)
    split = [torch.split(x, case.lengths) for x in together[1:6]]
    for chosen in ([3, 1, 0, 2], [1]):
        some = step(case, state.rows(chosen), [x[chosen] for x in inputs], 200)
        assert torch.equal(some[0], together[0][chosen])
        for got, parts in zip(some[1:6], split, strict=True):
            assert torch.equal(got, torch.cat([parts[r] for r in chosen]))
        expected = state._replace(next_slot=together[6]).rows(chosen).next_slot
        assert torch.equal(some[6], expected)


def check_accuracy(case: Case, device: str) -> None:
    """Kernel and reference in the case's dtype, both against the reference in float64."""
    state, inputs, chosen = make_state(case, device), make_inputs(case, device), options(case, device)
    spec = chosen["spec"]
    exact_slots = state.copy().slots._replace(keys=state.slots.keys.double(), values=state.slots.values.double())
    exact_spec = spec._replace(sinks=spec.sinks if spec.sinks is None else spec.sinks.double())
    exact = decode_attend_reference(
        *(x.double() for x in inputs), *state.copy()._replace(slots=exact_slots), 400, **chosen | {"spec": exact_spec}
    )
    same_dtype = decode_attend_reference(*inputs, *state.copy(), 400, **chosen)
    actual = decode_attend(*inputs, *state.copy(), 400, **chosen)
    for got, theirs, reference in zip(actual, same_dtype, exact, strict=True):
        assert_as_accurate(got, theirs, reference)


def check_special_scores(device: str, rows: int) -> None:
    """Scores drawn from few values, NaN, infinities and both zeros among them; some slots free, some protected."""
    for start in range(2):  # with NaN, and without: NaN is least of all
        case = Case(Eviction("stored", window_size=3), 1, 16, 16, lengths=(9,) * rows, free=2)
        state, inputs = make_state(case, device), make_inputs(case, device)
        draws = torch.randint(1 - start, len(SPECIAL_SCORES), (9 * rows,))
        state.slots.scores.copy_(SPECIAL_SCORES[draws])
        state.slots.positions[8::18] = 0  # every other row has no free slot but the next one
        expected, actual = state.copy(), state.copy()
        decode_attend_reference(*inputs, *expected, 9, **options(case, device))
        decode_attend(*inputs, *actual, 9, **options(case, device))
        assert torch.equal(actual.next_slot, expected.next_slot)
        assert torch.equal(actual.slots.positions, expected.slots.positions)
