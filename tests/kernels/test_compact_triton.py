"""compact in Triton: bit for bit what the reference gives, from any strides."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from kvcompress.engine.store import SlotStore
from kvcompress.kernels.compact.op import compact
from kvcompress.kernels.compact.reference import RowPlan, compact_reference

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]

pytestmark = pytest.mark.usefixtures("unwritten_memory_shows")


@pytest.fixture
def unwritten_memory_shows():
    """torch.empty is filled with NaN, so a slot that no program wrote cannot pass for a result."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def bits(array: torch.Tensor) -> torch.Tensor:
    return array.cpu().contiguous().view(torch.uint8)


def check(arrays, plan: RowPlan, chosen=None) -> None:
    """The arrays as they are against the reference on copies of them; NaN and -0.0 must arrive as they are."""
    got = compact(*arrays, plan, chosen)
    wanted = compact_reference(*(a.cpu() for a in arrays), plan, None if chosen is None else chosen.cpu())
    for name, new, want in zip(wanted.slots._fields, got.slots, wanted.slots, strict=True):
        assert new.dtype == want.dtype, name
        assert new.shape == want.shape, name
        assert new.is_contiguous(), name
        assert torch.equal(bits(new), bits(want)), name
    assert torch.equal(got.row_offsets.cpu(), wanted.row_offsets)
    assert got.row_offsets.is_contiguous()
    assert got.row_offsets.device == arrays[0].device


def prompt(device, batch, heads, tokens, head_dim, value_dim, dtype, scored=None):
    """Keys as a projection leaves them, values contiguous, positions expanded from one line, scores sliced."""
    keys = torch.randn(batch, tokens, heads, head_dim, device=device).to(dtype).transpose(1, 2)
    values = torch.randn(batch, heads, tokens, value_dim, device=device).to(dtype)
    if dtype.is_floating_point:
        keys[..., ::7, 0], values[..., ::5, -1] = float("nan"), -0.0
    positions = torch.arange(3, tokens + 3, device=device).expand(batch, heads, tokens)
    scored = tokens if scored is None else scored
    return keys, values, positions, torch.rand(batch, heads, tokens + 3, device=device)[..., :scored]


def selection(device, rows, tokens, window, head, spare) -> tuple[RowPlan, torch.Tensor]:
    """A plan as the engine makes it after prefill."""
    chosen = torch.stack([torch.randperm(tokens - window)[: max(head)] for _ in range(rows)])
    plan = RowPlan(
        lengths=[n + window + spare for n in head],
        source=[row * tokens for row in range(rows)],
        head=head,
        tail_start=[tokens - window] * rows,
        tail=[window] * rows,
    )
    return plan, chosen.to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("head_dim", "value_dim", "dtype"),
    [
        (64, 64, torch.bfloat16),
        (80, 80, torch.float16),
        (96, 128, torch.float32),
        (192, 128, torch.bfloat16),
        (256, 256, torch.float32),
        (512, 512, torch.bfloat16),
        (24, 40, torch.float64),
        (1, 3, torch.float32),
        (16, 16, torch.int8),
    ],
    ids=str,
)
def test_sizes_and_dtypes(device, head_dim, value_dim, dtype) -> None:
    plan, chosen = selection(device, 6, 60, 5, [40, 0, 3, 33, 32, 7], 2)
    check(prompt(device, 2, 3, 60, head_dim, value_dim, dtype, scored=55), plan, chosen)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=25)
@given(st.data())
def test_any_plan(device, data) -> None:
    """Heads, tails, free slots, sources in any order and more than once; chosen or the first; fewer scores."""
    tokens, rows = 9, data.draw(st.integers(1, 5))
    count = st.integers(0, tokens)
    head = data.draw(st.lists(count, min_size=rows, max_size=rows))
    tail = data.draw(st.lists(count, min_size=rows, max_size=rows))
    plan = RowPlan(
        lengths=[h + t + data.draw(st.integers(0, 3)) for h, t in zip(head, tail, strict=True)],
        source=[tokens * data.draw(st.integers(0, 5)) for _ in head],
        head=head,
        tail_start=[data.draw(st.integers(0, tokens - t)) for t in tail],
        tail=tail,
    )
    chosen = torch.randint(0, tokens, (rows, max(head)), device=device) if data.draw(st.booleans()) else None
    check(prompt(device, 2, 3, tokens, 8, 6, torch.float32, scored=data.draw(count)), plan, chosen)


@pytest.mark.parametrize("device", DEVICES)
def test_positions_of_padding_stay_free(device) -> None:
    keys, values, positions, scores = prompt(device, 2, 2, 20, 16, 16, torch.float32)
    plan, chosen = selection(device, 4, 20, 4, [6, 6, 6, 6], 1)
    positions = positions.clone()
    positions[1, :, :12] = -1
    check((keys, values, positions, scores), plan, chosen)


@pytest.mark.parametrize("device", DEVICES)
def test_odd_strides(device) -> None:
    """A base and strides that no wide load allows, a last axis that is not contiguous, chosen from a wider array."""
    plan, chosen = selection(device, 6, 20, 3, [5, 4, 9, 0, 1, 2], 1)
    wide = torch.randn(2, 3, 25, 19, device=device)
    keys, values = wide[:, :, 5:, 1:9], wide[:, :, 2:22, 4:19:3]
    _, _, positions, scores = prompt(device, 2, 3, 20, 1, 1, torch.float32)
    check((keys, values, positions, scores), plan, chosen)
    check((keys.transpose(0, 1).flip(0).transpose(0, 1), values, positions, scores), plan, chosen.t().contiguous().t())
    check((keys, values, positions, scores), plan, torch.cat([chosen, chosen], 1)[:, :9])


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_chosen_and_no_rows(device) -> None:
    arrays = prompt(device, 2, 2, 10, 8, 8, torch.bfloat16)
    plan, _ = selection(device, 4, 10, 3, [0, 0, 0, 0], 1)
    check(arrays, plan, torch.empty(4, 0, dtype=torch.int64, device=device))
    check(arrays, RowPlan([0, 0], [0, 10], [0, 0], [0, 0], [0, 0]))
    got = compact(*arrays, RowPlan([], [], [], [], []))
    assert got.row_offsets.tolist() == [0]
    assert [a.shape[0] for a in got.slots] == [0, 0, 0, 0]


def stores(device, lengths: list[int], heads: int) -> list[SlotStore]:
    """Equal stores on both backends; the last slot of each row is free."""
    total = sum(lengths)
    arrays = (torch.randn(total, 24), torch.randn(total, 40), torch.randperm(total), torch.rand(total))
    ends = torch.tensor(lengths).cumsum(0) - 1
    arrays[2][ends] = -1
    plan = RowPlan([total], [0], [total], [0], [0])
    made = []
    for backend in ("torch", "triton"):
        packed = compact_reference(*(a.to(device) for a in arrays), plan)
        offsets = torch.tensor([0, *lengths]).cumsum(0).to(device)
        made.append(SlotStore(packed._replace(row_offsets=offsets), list(lengths), heads, backend))
    return made


@pytest.mark.parametrize("device", DEVICES)
def test_a_store_lives_the_same_life_on_both_backends(device) -> None:
    """Trimmed, grown, reordered, grown again: rows of different lengths, one of two blocks."""
    one, other = stores(device, [5, 9, 40, 2], heads=2)
    for store in (one, other):
        store.trim([3, 6, 36, 0], [3, 2, 33, 0])
        store.grow([2, 0, 1, 5])
        store.select_batch(torch.tensor([1, 0, 1], device=device))
        store.grow([1, 1, 0, 0, 7, 1])
    assert one.lengths == other.lengths
    for a, b in zip(one.tensors(), other.tensors(), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(bits(a), bits(b))


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_refused(device) -> None:
    keys, values, positions, scores = prompt(device, 1, 2, 6, 4, 4, torch.float32)
    plan, chosen = selection(device, 2, 6, 1, [2, 2], 1)
    with pytest.raises(ValueError, match=r"keys must be \[batch.*got \[2, 6, 4\]"):
        compact(keys[0], values, positions, scores, plan, chosen)
    with pytest.raises(ValueError, match=r"values must .* 1, 2, 4 or 8 bytes; got torch.complex128.*backend='torch'"):
        compact(keys, values.to(torch.complex128), positions, scores, plan, chosen)


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 80, 96, 112, 128, 192, 256, 512])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_long_prompts(head_dim, dtype) -> None:
    """Rows of very different lengths."""
    heads = 8
    head = torch.randint(0, 4000, (2 * heads,)).tolist()
    plan, chosen = selection("cuda", 2 * heads, 33_000, 32, head, 5)
    check(prompt("cuda", 2, heads, 33_000, head_dim, 128, dtype, scored=32_968), plan, chosen)


@pytest.mark.gpu
def test_addresses_beyond_32_bits() -> None:
    """The last tokens stand more than 2³¹ numbers into the keys."""
    keys = torch.zeros(1, 2, 9_000_000, 128, dtype=torch.int8, device="cuda")
    keys[:, :, -40:] = torch.randint(-128, 128, (1, 2, 40, 128), dtype=torch.int8, device="cuda")
    positions = torch.arange(9_000_000, device="cuda").expand(1, 2, -1)
    scores = torch.rand(1, 2, 10, device="cuda")
    plan = RowPlan([41, 41], [0, 9_000_000], [0, 0], [8_999_960] * 2, [40, 40])
    check((keys, keys[..., :16], positions, scores), plan)
