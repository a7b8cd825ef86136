"""decode_attend as an operator: torch.library's own checks, compilation, and the reference behind it on the CPU."""

from typing import Any

import pytest
import torch

from kvcompress.kernels.decode_attend.op import _decode_attend, decode_attend
from kvcompress.kernels.decode_attend.reference import Eviction, decode_attend_reference
from kvcompress.kernels.dispatch import interpreting, operation
from tests.kernels.decode_attend_steps import Case, State, assert_equal, make_inputs, make_state, options

pytestmark = pytest.mark.skipif(interpreting(), reason="the operator's CPU side is the reference only without Triton")

PLAIN = Case(Eviction("running", decay=0.9, window_size=2), lengths=(13, 13, 22))
FULL = Case(
    Eviction("position", 1.0, 2, 3, keep_prompt=True), 3, 24, 40, torch.bfloat16, (13, 22, 22),
    softcap=2.0, sliding_window=12, free=3, new_score=True, row_start=True, prompt_end=9,
)  # fmt: skip
CASES = pytest.mark.parametrize("case", [PLAIN, FULL], ids=["plain", "all-features"])


def both(case: Case) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Results and all that was modified, of the operator and of the reference."""
    state, inputs, chosen = make_state(case, "cpu"), make_inputs(case, "cpu"), options(case, "cpu")
    found = []
    for function in (decode_attend, decode_attend_reference):
        own = state.copy()
        found.append((*function(*inputs, *own, 40, **chosen), *own.slots, own.next_slot))
    return found[0], found[1]


def arguments(case: Case, *, on_device: bool, arrivals: bool) -> tuple[Any, ...]:
    """The operator's own, flat arguments."""
    state, chosen = make_state(case, "cpu"), options(case, "cpu")
    return (
        *make_inputs(case, "cpu"),
        *state.slots,
        state.next_slot,
        state.row_offsets,
        max(case.lengths),
        *((0, torch.tensor(40)) if on_device else (40, None)),
        *(chosen["new_score"], chosen["row_start"]),
        torch.zeros(len(case.lengths), dtype=torch.int32) if arrivals else None,
        *(0.3, case.softcap, chosen["spec"].sinks, case.sliding_window),
        *case.eviction[:4],
        *(case.eviction.keep_prompt, case.prompt_end),
    )


@CASES
def test_operator_is_the_reference_on_the_cpu(case: Case) -> None:
    actual, expected = both(case)
    assert_equal(actual, expected)


def test_dispatch_leads_to_the_operator() -> None:
    assert operation("decode_attend", "triton") is decode_attend


@CASES
@pytest.mark.parametrize("on_device", [False, True], ids=["host-position", "device-position"])
def test_operator_keeps_the_rules_of_torch_library(case: Case, on_device: bool) -> None:
    torch.library.opcheck(_decode_attend, arguments(case, on_device=on_device, arrivals=on_device))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # inductor's own import
@pytest.mark.parametrize("on_device", [False, True], ids=["host-position", "device-position"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_steps_compile_into_one_graph(backend: str, on_device: bool) -> None:
    compiled = torch.compile(decode_some, fullgraph=True, backend=backend)
    expected = make_state(PLAIN, "cpu")
    actual = expected.copy()
    for position in range(40, 43):
        inputs = make_inputs(PLAIN, "cpu")
        at = torch.tensor(position) if on_device else position
        results = decode_some(inputs, expected, at)
        assert_equal(compiled(inputs, actual, at), results)
        assert_equal((*actual.slots, actual.next_slot), (*expected.slots, expected.next_slot))


def decode_some(inputs: list[torch.Tensor], state: State, position: int | torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A step between other operations, as in a model."""
    query, *new = inputs
    output, probability = decode_attend(query * 2, *new, *state, position, **options(PLAIN, "cpu"))
    return output + 1, probability * 2
