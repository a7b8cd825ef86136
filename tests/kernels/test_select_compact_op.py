"""select_top_k and compact as operators: what torch checks of them, and that compiled code gives the same."""

import pytest
import torch

from kvcompress.kernels.compact.op import compact
from kvcompress.kernels.compact.reference import RowPlan, compact_reference
from kvcompress.kernels.dispatch import operation
from kvcompress.kernels.select_top_k.op import select_top_k
from kvcompress.kernels.select_top_k.reference import select_top_k_reference

PLAN = RowPlan(lengths=[6, 3, 5, 4], source=[0, 9, 18, 27], head=[3, 1, 2, 2], tail_start=[7] * 4, tail=[2] * 4)
PLAN_TABLE = torch.tensor([[0, 6, 9, 14, 18], *([*entries, 0] for entries in PLAN)])
OFFSETS, ROW_K = torch.tensor([0, 4, 4, 15, 30]), torch.tensor([6, 2, 3, 0])


def prompt() -> tuple[torch.Tensor, ...]:
    keys, values = torch.randn(2, 9, 2, 8).transpose(1, 2), torch.randn(2, 2, 9, 4)
    return keys, values, torch.arange(9).expand(2, 2, 9), torch.rand(2, 2, 7)


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.rand(2, 3, 20), 5, None, None),
        (torch.rand(20, 4).t(), 5, ROW_K, None),
        (torch.rand(4, 20), 0, None, None),
        (torch.rand(30), 6, ROW_K, OFFSETS),
    ],
    ids=["even", "row_k", "none", "ragged"],
)
def test_select_top_k_is_a_sound_operator(arguments) -> None:
    torch.library.opcheck(torch.ops.kvcompress.select_top_k.default, arguments)


@pytest.mark.parametrize("chosen", [None, torch.tensor([[4, 0, 6], [1, 1, 1], [3, 5, 0], [6, 2, 0]])])
def test_compact_is_a_sound_operator(chosen) -> None:
    torch.library.opcheck(torch.ops.kvcompress.compact.default, (*prompt(), PLAN_TABLE, chosen, 18, 6))


def test_compact_of_a_flat_array_without_scores_is_a_sound_operator() -> None:
    keys, values, positions, _ = prompt()
    flat = keys.reshape(36, 8), values.reshape(36, 4), positions.reshape(36), torch.empty(0)
    torch.library.opcheck(torch.ops.kvcompress.compact.default, (*flat, PLAN_TABLE, None, 18, 6))


def select_then_compact(keys, values, positions, scores):
    chosen = select_top_k(scores * 2, 3)
    slots, offsets = compact(keys + 1, values, positions, scores * 2, PLAN, chosen.view(4, 3))
    return slots.keys * 2, slots.values, slots.positions, slots.scores, offsets


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # from torch itself
def test_compiled_code_gives_the_same() -> None:
    arrays = prompt()
    torch._dynamo.reset()
    compiled = torch.compile(select_then_compact, fullgraph=True)
    for got, wanted in zip(compiled(*arrays), select_then_compact(*arrays), strict=True):
        assert torch.equal(got, wanted)


def test_operators_on_the_cpu_are_the_references() -> None:
    """The backend's name finds the operator; off the GPU it is the definition itself."""
    scores = torch.randint(0, 4, (4, 7)).float()
    scores[0, 2], scores[1] = float("nan"), -0.0
    chosen = operation("select_top_k", "triton")(scores, 3, row_k=torch.tensor([3, 1, 0, 2]))
    assert torch.equal(chosen, select_top_k_reference(scores, 3, row_k=torch.tensor([3, 1, 0, 2])))
    ragged = operation("select_top_k", "triton")(torch.arange(30.0), 6, row_k=ROW_K, row_offsets=OFFSETS)
    assert ragged.tolist() == [[3, 2, 1, 0, -1, -1], [-1] * 6, [10, 9, 8, -1, -1, -1], [-1] * 6]
    packed = operation("compact", "triton")(*prompt_of(7), PLAN, chosen.clamp(min=0))
    wanted = compact_reference(*prompt_of(7), PLAN, chosen.clamp(min=0))
    for got, want in zip((*packed.slots, packed.row_offsets), (*wanted.slots, wanted.row_offsets), strict=True):
        assert torch.equal(got, want)


def test_packed_arrays_hold_nothing_else_in_memory() -> None:
    """A cache counts the bytes of its storages: none may be a view of something larger, such as the plan."""
    packed = compact(*prompt(), PLAN)
    for array in (*packed.slots, packed.row_offsets):
        assert array.untyped_storage().nbytes() == array.numel() * array.itemsize


def prompt_of(seed: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(seed)
    return prompt()
