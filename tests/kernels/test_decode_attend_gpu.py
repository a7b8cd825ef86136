"""The kernels of decode_attend on a GPU: large shapes, no races, no recompilation, the same from a CUDA graph."""

import pytest
import torch

from kvcompress.kernels.decode_attend.op import decode_attend
from kvcompress.kernels.decode_attend.reference import Eviction
from tests.kernels.decode_attend_steps import (
    Case,
    assert_equal,
    check_accuracy,
    check_row_independence,
    check_special_scores,
    check_steps,
    make_inputs,
    make_state,
    options,
    step,
)

pytestmark = pytest.mark.gpu

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
RUNNING = Eviction("running", decay=0.98, window_size=32, sink_tokens=4)
LAYER = Case(RUNNING, 4, 128, 128, torch.bfloat16, (1057, 1057, 700, 321, 1600, 64, 1057, 900))


@DTYPES
@pytest.mark.parametrize(
    ("group", "head_dim", "value_dim"),
    [(1, 64, 64), (4, 128, 128), (7, 80, 64), (8, 192, 128), (12, 96, 112), (32, 256, 256), (8, 512, 512)],
    ids=["G1-D64", "G4-D128", "G7-D80-V64", "G8-D192-V128", "G12-D96-V112", "G32-D256", "G8-D512"],
)
def test_output_is_as_accurate_as_torch(dtype: torch.dtype, group: int, head_dim: int, value_dim: int) -> None:
    case = Case(RUNNING, group, head_dim, value_dim, dtype, (130, 2000, 1057, 300), learned_sinks=True)
    check_accuracy(case, "cuda")
    check_accuracy(case._replace(softcap=5.0), "cuda")


@pytest.mark.parametrize("one_launch", [False, True], ids=["two-launches", "one-launch"])
@pytest.mark.parametrize("order", ["none", "probability", "running", "stored", "position"])
def test_steps_leave_the_same_state_as_the_reference(order: str, one_launch: bool) -> None:
    # float32: near-ties of 16-bit inputs, which the reference rounds otherwise, are no concern of this test
    rule = Eviction(order, 0.9, 32, 4, keep_prompt=order == "position")
    case = Case(rule, 4, 128, 128, lengths=(1057, 1057, 300, 1500), free=40, new_score=True, row_start=True)
    check_steps(case._replace(prompt_end=800, one_launch=one_launch, on_device=one_launch), "cuda", 50)


def test_rows_longer_than_a_chunk_leave_the_same_state() -> None:
    check_steps(Case(RUNNING, 4, 128, 128, lengths=(20_000, 300), sliding_window=15_000), "cuda", 10)


def test_rows_do_not_depend_on_each_other() -> None:
    check_row_independence(LAYER._replace(lengths=(1057, 64, 9000, 300)), "cuda")


def test_ties_and_special_scores_give_the_victim_of_argmin() -> None:
    check_special_scores("cuda", rows=1000)


def test_one_launch_equals_two_for_a_hundred_thousand_steps() -> None:
    """The race loop: programs of a row must see each other's results before the last one finishes the row.

    A hundred steps of both are one graph: the GPU runs them back to back, and the host does not hold it up.
    """
    state = make_state(LAYER, "cuda")
    two, one = state.copy(), state.copy()
    arrivals = torch.zeros(len(LAYER.lengths), dtype=torch.int32, device="cuda")
    inputs = [make_inputs(LAYER, "cuda") for _ in range(64)]
    chosen = options(LAYER, "cuda")
    position = torch.tensor(2000, device="cuda")
    differences = torch.zeros((), dtype=torch.int64, device="cuda")

    def hundred_steps() -> None:
        for index in range(100):
            now = inputs[index % 64]
            output, _ = decode_attend(*now, *two, position, **chosen)
            got, _ = decode_attend(*now, *one, position, **chosen, arrivals=arrivals)
            differences.add_((output != got).any())
            position.add_(1)

    hundred_steps()  # compiles outside of the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        hundred_steps()
    for repeat in range(999):
        graph.replay()
        if repeat % 100 == 0:
            assert_equal((*one.slots, one.next_slot), (*two.slots, two.next_slot))
    assert_equal((*one.slots, one.next_slot), (*two.slots, two.next_slot))
    assert int(position) == 102_000
    assert int(differences) == 0
    assert not arrivals.any()


@pytest.mark.parametrize("one_launch", [False, True], ids=["two-launches", "one-launch"])
def test_replayed_graph_equals_eager_steps(one_launch: bool) -> None:
    expected = make_state(LAYER, "cuda")
    actual, inputs, chosen = expected.copy(), make_inputs(LAYER, "cuda"), options(LAYER, "cuda")
    arrivals = torch.zeros(len(LAYER.lengths), dtype=torch.int32, device="cuda") if one_launch else None
    step(LAYER, expected, inputs, 2000, arrivals=arrivals)  # compiles outside of the capture
    position = torch.tensor(2000, device="cuda")
    step(LAYER, expected, inputs, position, arrivals=arrivals)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output, probability = decode_attend(*inputs, *actual, position, **chosen, arrivals=arrivals)
        position += 1
    queries = [torch.randn_like(inputs[0]) for _ in range(16)]
    for at in range(2000, 3000):
        inputs[0].copy_(queries[at % 16])
        graph.replay()
        results = decode_attend(*inputs, *expected, at, **chosen)
        assert_equal((output, probability), results)
    assert_equal((*actual.slots, actual.next_slot), (*expected.slots, expected.next_slot))


def test_positions_and_lengths_do_not_recompile() -> None:
    from kvcompress.kernels.decode_attend import kernel

    def compiled() -> int:
        kernels = (kernel._attend_slots_kernel, kernel._finish_kernel)
        return sum(len(cache[0]) for function in kernels for cache in function.device_caches.values())

    def decode(lengths: tuple[int, ...], positions: range) -> None:
        case = LAYER._replace(lengths=lengths)
        state, inputs = make_state(case, "cuda"), make_inputs(case, "cuda")
        for position in positions:
            decode_attend(*inputs, *state, position, **options(case, "cuda"))

    decode((300, 200), range(1000, 1002))
    before = compiled()
    decode((301, 200), range(5))
    decode((2048, 16), range(1 << 20, (1 << 20) + 20))
    assert compiled() == before
