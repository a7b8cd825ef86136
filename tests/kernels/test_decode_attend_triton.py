"""The kernels of decode_attend against their reference: same victims, same state, output as accurate as torch's."""

import pytest
import torch

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
    step,
)

HALVES = (torch.float16, torch.bfloat16)

CASES = {
    "probability": Case(Eviction("probability", window_size=2)),
    "ema-G1-D80-V64": Case(Eviction("running", decay=0.9, window_size=2), group=1, head_dim=80),
    "accumulate-sink-tokens-G7-D24-V40": Case(
        Eviction("running", window_size=3, sink_tokens=2), group=7, head_dim=24, value_dim=40, row_start=True
    ),
    "running-new-score-fp16": Case(Eviction("running", decay=0.5), dtype=torch.float16, new_score=True),
    "stored-G12-bf16": Case(Eviction("stored", window_size=2), group=12, dtype=torch.bfloat16, new_score=True),
    "position-keep-prompt-free": Case(Eviction("position", 1.0, 2, keep_prompt=True), group=2, free=5, prompt_end=9),
    "position-sink-tokens": Case(Eviction("position", window_size=1, sink_tokens=3), group=8, one_launch=True),
    "none-free": Case(Eviction("none"), free=12),
    "sliding": Case(Eviction("running", window_size=2), sliding_window=7, free=3),
    "sliding-none": Case(Eviction("none"), sliding_window=16, lengths=(17, 17), one_launch=True),
    "softcap-sinks-bf16-D96": Case(
        Eviction("running", window_size=2), head_dim=96, dtype=torch.bfloat16, softcap=1.5, learned_sinks=True
    ),
    "device-position-G32-fp32": Case(Eviction("probability"), group=32, head_dim=16, on_device=True, one_launch=True),
    "accumulate-D512-bf16": Case(
        Eviction("running", window_size=2), head_dim=512, value_dim=512, dtype=torch.bfloat16, lengths=(24, 17)
    ),
    "probability-D512-G4": Case(
        Eviction("probability", window_size=2), group=4, head_dim=512, value_dim=512, lengths=(24, 17), one_launch=True
    ),
    "all-protected": Case(Eviction("probability", window_size=100), on_device=True, one_launch=True),
}


@pytest.fixture
def filled_memory():
    """New memory holds NaN: what a kernel forgets to write is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def small_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits of 32 slots, four at most, and chunks of 64: what long rows get, on short ones."""
    launch = pytest.importorskip("kvcompress.kernels.decode_attend.launch")
    monkeypatch.setattr(launch, "LEAST_SPLIT", 32)
    monkeypatch.setattr(launch, "MOST_SPLITS", 4)
    monkeypatch.setattr(launch, "CHUNK", 64)


@pytest.mark.interpret
@pytest.mark.usefixtures("filled_memory")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_steps_leave_the_same_state_as_the_reference(case: Case) -> None:
    check_steps(case, "cpu", 16)


@pytest.mark.slow
@pytest.mark.interpret
@pytest.mark.usefixtures("filled_memory")
@pytest.mark.parametrize("case", ["ema-G1-D80-V64", "accumulate-sink-tokens-G7-D24-V40"])
def test_two_hundred_steps_leave_the_same_state_as_the_reference(case: str) -> None:
    check_steps(CASES[case], "cpu", 200)


@pytest.mark.interpret
@pytest.mark.usefixtures("filled_memory", "small_splits")
@pytest.mark.parametrize("group", [1, 40], ids=["G1", "G40"])  # 40 heads take three programs of 16
def test_long_rows_are_cut_into_splits_and_chunks(group: int) -> None:
    rule = Eviction("running", decay=0.9, window_size=4, sink_tokens=2)
    check_steps(Case(rule, group, 24, 40, lengths=(150, 40), learned_sinks=True, free=3), "cpu", 4)


@pytest.mark.interpret
@pytest.mark.usefixtures("small_splits")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_one_launch_equals_two_bit_for_bit(dtype: torch.dtype) -> None:
    case = Case(Eviction("running", window_size=2), 20, 32, 24, dtype, lengths=(63, 9, 40))
    state, inputs = make_state(case, "cpu"), make_inputs(case, "cpu")
    arrivals = torch.zeros(3, dtype=torch.int32)
    assert_equal(step(case, state, inputs, 70, arrivals=arrivals), step(case, state, inputs, 70))
    assert not arrivals.any()


@pytest.mark.interpret
@pytest.mark.usefixtures("small_splits")
def test_rows_do_not_depend_on_each_other() -> None:
    case = Case(Eviction("running", window_size=2), 3, lengths=(70, 9, 150, 40))
    check_row_independence(case, "cpu")


@pytest.mark.interpret
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("softcap", [None, 3.0], ids=["plain", "softcap"])
def test_output_is_as_accurate_as_torch(dtype: torch.dtype, softcap: float | None) -> None:
    check_accuracy(Case(Eviction("none"), 4, 80, 64, dtype, (300, 129), softcap, learned_sinks=True), "cpu")


@pytest.mark.interpret
def test_ties_and_special_scores_give_the_victim_of_argmin() -> None:
    check_special_scores("cpu", rows=12)


@pytest.mark.interpret
def test_strided_input_is_read_as_it_is() -> None:
    case = Case(Eviction("probability"), 3, 24, 24, lengths=(20, 11))
    state, inputs = make_state(case, "cpu"), make_inputs(case, "cpu")
    transposed = [inputs[0].transpose(0, 2).contiguous().transpose(0, 2), *(x.t().contiguous().t() for x in inputs[1:])]
    assert_equal(step(case, state, transposed, 30), step(case, state, inputs, 30))
    apart = [torch.stack([x, x], dim=1)[:, 0] for x in inputs]  # only the last axis contiguous
    assert_equal(step(case, state, apart, 30), step(case, state, inputs, 30))


@pytest.mark.interpret
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": torch.float64}, r"must all be float32, float16 or bfloat16.*torch\.float64.*backend='torch'"),
        ({"head_dim": 520}, r"at most 512; got 520 and 64.*backend='torch'"),
        ({"value_dim": 513}, r"at most 512; got 64 and 513.*backend='torch'"),
    ],
    ids=["float64", "head_dim", "value_dim"],
)
def test_what_the_kernels_cannot_take_is_refused(changes: dict, message: str) -> None:
    case = Case(Eviction("none"), lengths=(8,))._replace(**changes)
    with pytest.raises(ValueError, match=message):
        step(case, make_state(case, "cpu"), make_inputs(case, "cpu"), 10)


@pytest.mark.interpret
def test_store_and_query_of_different_dtypes_are_refused() -> None:
    case = Case(Eviction("none"), lengths=(8,))
    query, *new = make_inputs(case, "cpu")
    with pytest.raises(ValueError, match=r"and the same; got torch\.bfloat16, torch\.float32"):
        step(case, make_state(case, "cpu"), [query.bfloat16(), *new], 10)
