"""Programs of a launch may run in any order, and side by side: results keep every bit, and nothing races."""

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from kvcompress.kernels.compact.op import compact
from kvcompress.kernels.compact.reference import RowPlan
from kvcompress.kernels.decode_attend.reference import Eviction
from kvcompress.kernels.select_top_k.op import select_top_k
from kvcompress.kernels.window_scores.op import window_scores
from tests.kernels.decode_attend_steps import Case, make_inputs, make_state, step
from tests.kernels.watched_programs import Watch, backward, shuffled, watched
from tests.kernels.window_scores_cases import EVERYTHING, make, spec_of

pytestmark = pytest.mark.interpret

Tensors = tuple[torch.Tensor, ...]


@pytest.fixture
def programs_keep_apart() -> None:
    """In place of the one for all other tests: here they are watched in the test itself."""


@pytest.fixture
def small_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts short rows into many programs, as long ones are."""
    from kvcompress.kernels.decode_attend import launch as decode
    from kvcompress.kernels.select_top_k import launch as select
    from kvcompress.kernels.window_scores import launch as scores

    settings = {
        decode: {"LEAST_SPLIT": 32, "MOST_SPLITS": 4, "CHUNK": 64},
        select: {"ROW_PROGRAM_MOST": 0, "_BLOCK": 128, "_BLOCK_NIBBLE": 64, "_STEPS": 2, "EXTRA": 5},
        scores: {"SPLITS": ((8192, 64),)},
    }
    for module, values in settings.items():
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)


def scored() -> Tensors:
    query, key = make((2, 12, 2, 150, 12, 16), torch.float32)
    found = window_scores(query, key, spec=spec_of("all", 12, 150), scored=138, **EVERYTHING)
    return tuple(x for x in found if x is not None)


def selected() -> Tensors:
    scores = torch.stack([torch.randn(700), torch.randint(0, 3, (700,)).float(), torch.randn(700).exp()])
    return (select_top_k(scores, 90), select_top_k(scores.flatten(), 50, row_offsets=torch.tensor([0, 300, 310, 2100])))


def compacted() -> Tensors:
    keys, values = torch.randn(2, 3, 200, 24), torch.randn(2, 3, 200, 16)
    positions, scores = torch.arange(200).expand(2, 3, 200), torch.rand(2, 3, 200)
    head = [80, 0, 31, 120, 64, 7]
    chosen = torch.stack([torch.randperm(190)[:120] for _ in head])
    plan = RowPlan([n + 13 for n in head], [200 * row for row in range(6)], head, [190] * 6, [10] * 6)
    return tuple(compact(keys, values, positions, scores, plan, chosen).slots)


def decoded(*, one_launch: bool, lengths: tuple[int, ...]) -> Tensors:
    case = Case(Eviction("running", 0.9, 2), 20, 32, 24, lengths=lengths, learned_sinks=True)
    arrivals = torch.zeros(len(lengths), dtype=torch.int32) if one_launch else None
    return step(case, make_state(case, "cpu"), make_inputs(case, "cpu"), 200, arrivals=arrivals)


CALLS: dict[str, tuple[Callable[[], Tensors], str]] = {
    "window_scores": (scored, "_window_scores_kernel"),
    "select_top_k": (selected, "_gather_kernel"),
    "compact": (compacted, "_compact_kernel"),
    "decode_attend": (lambda: decoded(one_launch=False, lengths=(63, 40)), "_finish_kernel"),
    "decode_attend of long rows": (lambda: decoded(one_launch=False, lengths=(150, 40)), "_attend_slots_kernel"),
    "decode_attend in one launch": (lambda: decoded(one_launch=True, lengths=(63, 40)), "_attend_slots_kernel"),
}


def run(call: Callable[[], Tensors], order: Callable) -> tuple[Tensors, Watch]:
    torch.manual_seed(1)
    with watched(order) as watch:
        return call(), watch


@pytest.mark.usefixtures("small_launches")
@pytest.mark.parametrize(("call", "kernel"), CALLS.values(), ids=CALLS.keys())
def test_results_depend_on_no_order(call: Callable[[], Tensors], kernel: str) -> None:
    torch.manual_seed(1)
    expected = call()
    for order in (backward, shuffled(1), shuffled(2)):
        results, watch = run(call, order)
        assert watch.programs[kernel] > 3
        assert not watch.problems
        for got, wanted in zip(results, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


# What the watch finds. Each of these kernels gives the right result where programs run one after another.


@triton.jit
def _pass_on(values_ptr, sum_ptr, size: tl.constexpr, step: tl.constexpr):
    """Adds up what each program but the first finds in the element before its own."""
    place = tl.program_id(0)
    before = tl.load(values_ptr + (place - 1) * step, mask=place > 0, other=0)
    tl.store(values_ptr + place * step, before + 1)
    tl.store(sum_ptr + tl.arange(0, size), before, mask=tl.arange(0, size) == place)


@triton.jit
def _count(counter_ptr, last_ptr, total: tl.constexpr, PLAIN: tl.constexpr):
    """Counts programs, atomically or by load and store; the last one says so."""
    if PLAIN:
        before = tl.load(counter_ptr)
        tl.store(counter_ptr, before + 1)
    else:
        before = tl.atomic_add(counter_ptr, 1, sem="relaxed")
    tl.store(last_ptr, before, mask=before == total - 1)


@triton.jit
def _gather_last(values_ptr, counter_ptr, out_ptr, programs: tl.constexpr, SEM: tl.constexpr, CACHE: tl.constexpr):
    """Each program writes an element; the one that arrives last reads all."""
    place = tl.program_id(0)
    tl.store(values_ptr + place, place + 1)
    tl.debug_barrier()
    if tl.atomic_add(counter_ptr, 1, sem=SEM) == programs - 1:
        every = tl.arange(0, programs)
        tl.store(out_ptr + every, tl.load(values_ptr + every, cache_modifier=CACHE))


@triton.jit
def _move_up(values_ptr, size: tl.constexpr, by: tl.constexpr, BARRIER: tl.constexpr):
    """Moves all elements up in place."""
    every = tl.arange(0, size)
    values = tl.load(values_ptr + every)
    if BARRIER:
        tl.debug_barrier()
    tl.store(values_ptr + every + by, values, mask=every + by < size)


def problems_of(kernel, *arguments, programs: int = 4) -> str:
    with watched() as watch:
        kernel[(programs,)](*arguments)
    assert watch.programs[kernel.__name__] == programs
    return "; ".join(watch.problems)


def integers(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int32)


def test_reading_what_another_program_writes_is_found() -> None:
    assert "one program writes and another reads" in problems_of(_pass_on, integers(4), integers(4), 4, 1)


def test_two_writers_of_one_element_are_found() -> None:
    assert "one program writes and another writes" in problems_of(_pass_on, integers(4), integers(4), 4, 0)
    assert "one program writes and another reads" in problems_of(_count, integers(1), integers(1), 4, True)


def test_atomic_changes_of_one_element_are_no_race() -> None:
    counter, last = integers(1), integers(1)
    assert not problems_of(_count, counter, last, 4, False)
    assert (counter.item(), last.item()) == (4, 3)


@pytest.mark.parametrize(
    ("semantics", "cache", "found"),
    [
        ("acq_rel", ".cg", ""),
        ("relaxed", ".cg", "one program writes and another reads the same elements, in no order"),
        ("acq_rel", "", "through the first-level cache"),
    ],
)
def test_the_last_to_arrive_reads_only_what_was_released(semantics: str, cache: str, found: str) -> None:
    out = integers(4)
    problems = problems_of(_gather_last, integers(4), integers(1), out, 4, semantics, cache)
    assert (found in problems) if found else not problems
    assert out.tolist() == [1, 2, 3, 4]


def test_threads_that_write_what_others_read_need_a_barrier() -> None:
    found = "threads of a program read or write each other's elements"
    assert found in problems_of(_move_up, integers(8), 8, 1, False, programs=1)
    assert not problems_of(_move_up, integers(8), 8, 1, True, programs=1)
    assert not problems_of(_move_up, integers(8), 8, 0, False, programs=1)  # every thread writes what it has read


def test_elements_outside_the_tensors_are_found() -> None:
    room = integers(8)
    inside, beyond = room[:4].clone(), torch.zeros(3, dtype=torch.int32)
    assert not problems_of(_count, inside[:1], inside[1:2], 4, False)
    assert "writes 1 elements outside its tensors" in problems_of(_pass_on, beyond, integers(4), 4, 1)


def test_one_program_may_do_as_it_likes_with_its_own() -> None:
    assert not problems_of(_pass_on, integers(1), integers(1), 1, 1, programs=1)
