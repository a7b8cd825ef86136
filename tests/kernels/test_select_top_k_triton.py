"""select_top_k in Triton: index for index what the reference gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from kvcompress.kernels.select_top_k import launch
from kvcompress.kernels.select_top_k.op import select_top_k
from kvcompress.kernels.select_top_k.reference import select_top_k_reference

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
INF, NAN = float("inf"), float("nan")
SPECIAL = [0.0, -0.0, 1.0, -1.0, INF, -INF, NAN, 1e-45, -1e-45, 1.1754944e-38, 3.4028235e38, -3.4028235e38]

pytestmark = pytest.mark.usefixtures("unwritten_memory_shows")


@pytest.fixture
def unwritten_memory_shows():
    """torch.empty is filled with impossible numbers, so a place that no kernel wrote cannot pass for a result."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(params=[0, 5, 1024], ids="{} extra candidates".format)
def many_programs(request, monkeypatch) -> None:
    """Every row is cut into blocks of 128 scores; with few extra candidates ties must be resolved to the last bit."""
    monkeypatch.setattr(launch, "ROW_PROGRAM_MOST", 0)
    monkeypatch.setattr(launch, "_BLOCK", 128)
    monkeypatch.setattr(launch, "_BLOCK_NIBBLE", 64)
    monkeypatch.setattr(launch, "_STEPS", 2)
    monkeypatch.setattr(launch, "EXTRA", request.param)


def check(scores: torch.Tensor, k: int, row_k: torch.Tensor | None = None, row_offsets: torch.Tensor | None = None):
    got = select_top_k(scores, k, row_k=row_k, row_offsets=row_offsets)
    on_cpu = {"row_k": row_k, "row_offsets": row_offsets}
    wanted = select_top_k_reference(scores.cpu(), k, **{n: a if a is None else a.cpu() for n, a in on_cpu.items()})
    assert got.dtype == torch.int64
    assert got.device == scores.device
    assert torch.equal(got.cpu(), wanted)


def mixed_rows(rows: int, count: int) -> torch.Tensor:
    """Rows by turns: normal, softmax-like, few distinct values, special values, any bits at all, constant."""
    kinds = [
        torch.randn(rows, count),
        torch.randn(rows, count).mul(8).softmax(-1),
        torch.randint(-2, 3, (rows, count)).float(),
        torch.tensor(SPECIAL)[torch.randint(len(SPECIAL), (rows, count))],
        torch.randint(-(2**31), 2**31, (rows, count), dtype=torch.int64).to(torch.int32).view(torch.float32),
        torch.randn(rows, 1).expand(rows, count),
    ]
    return torch.stack(kinds)[torch.arange(rows) % len(kinds), torch.arange(rows)]


def adversarial_rows() -> torch.Tensor:
    rows = [
        SPECIAL * 3,
        SPECIAL[::-1] * 3,
        [NAN] * 36,
        [-INF] * 18 + [NAN] * 18,
        [NAN, -INF] * 18,
        [INF] * 36,
        [0.0, -0.0] * 18,
        [-0.0, 0.0] * 18,
        [-0.0, 1e-45, -1e-45] * 12,
        [i * 1e-45 for i in range(36)],
        [-i * 1e-45 for i in range(36)],
        [1.0 + i % 2 * 2**-23 for i in range(36)],
        [2.0**i for i in range(-18, 18)],
        [-(2.0**i) for i in range(-18, 18)],
        [1.0] * 35 + [2.0],
        [2.0] + [1.0] * 35,
    ]
    scores = torch.tensor(rows)
    negative_nan = scores[2].view(torch.int32) | -(2**31)
    scores[2] = torch.where(torch.arange(36) % 2 == 0, scores[2], negative_nan.view(torch.float32))
    return scores


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("part", ["none", "one", "half", "all"])
def test_adversarial_rows(device, part) -> None:
    check(adversarial_rows().to(device), {"none": 0, "one": 1, "half": 18, "all": 36}[part])


LISTS = st.lists(st.one_of(st.sampled_from(SPECIAL), st.floats(width=32)), min_size=1, max_size=40)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=40)
@given(LISTS, st.data())
def test_any_row(device, row, data) -> None:
    scores = torch.tensor([row], device=device)
    check(scores, data.draw(st.integers(0, len(row))))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("shape", "k"),
    [((1, 1), 1), ((3, 1), 0), ((0, 5), 3), ((2, 0, 4), 2), ((5, 0), 0), ((7,), 3), ((2, 63), 63), ((2, 2, 111), 50)],
)
def test_shapes(device, shape, k) -> None:
    check(torch.randint(0, 9, shape).float().to(device), k)


@pytest.mark.parametrize("device", DEVICES)
def test_a_row_of_several_blocks_and_a_rank_of_several_blocks(device) -> None:
    """5000 scores are three blocks of the selection, 300 chosen two of the comparison."""
    check(mixed_rows(3, 5000).to(device), 300)


@pytest.mark.parametrize("device", DEVICES)
def test_strides(device) -> None:
    scores = torch.randint(0, 9, (2, 40, 3)).float().to(device)
    check(scores.transpose(1, 2), 11)
    check(scores[:, 3:19, :2].transpose(1, 2), 5)
    check(scores[0, :, 0].expand(2, 3, 40), 4)
    check(scores.flatten()[1:37].view(3, 12), 6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_rank_as_float32(device, dtype) -> None:
    check(torch.randn(3, 50).to(device, dtype), 20)


@pytest.mark.parametrize("device", DEVICES)
def test_rows_want_different_counts(device) -> None:
    scores = mixed_rows(6, 70).to(device)
    check(scores.view(2, 3, 70), 40, torch.tensor([40, 0, 1, 17, 39, 16], device=device))
    check(scores, 0, torch.zeros(6, dtype=torch.int64, device=device))


def check_ragged_rows(device: str) -> None:
    lengths = [0, 4, 0, 1, 130, 257, 0]
    offsets = torch.tensor([0, *lengths], device=device).cumsum(0)
    scores = mixed_rows(6, 100).flatten()[: sum(lengths)].to(device)
    check(scores, 40, None, offsets)
    check(scores, 40, torch.tensor([3, 2, 0, 7, 40, 33, 1], device=device), offsets)
    check(scores, 0, None, offsets)


@pytest.mark.parametrize("device", DEVICES)
def test_ragged_rows(device) -> None:
    check_ragged_rows(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.usefixtures("many_programs")
def test_ragged_rows_by_many_programs(device) -> None:
    check_ragged_rows(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.usefixtures("many_programs")
@pytest.mark.parametrize("part", ["one", "some", "all"])
def test_a_row_by_many_programs(device, part) -> None:
    """700 scores are six blocks; ties run through all of them."""
    scores = torch.stack([torch.randint(0, 3, (700,)).float(), torch.randn(700)]).to(device)
    check(scores, {"one": 1, "some": 90, "all": 700}[part])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("count", "cut"), [(4096, False), (4097, True)])
def test_a_long_row_is_cut(device, count, cut, monkeypatch) -> None:
    form = launch._find_with_many_programs
    calls = []
    monkeypatch.setattr(launch, "_find_with_many_programs", lambda *given: (calls.append(given), form(*given))[1])
    check(mixed_rows(2, count).to(device), 20)
    assert len(calls) == cut


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.usefixtures("many_programs")
@pytest.mark.parametrize("part", ["none", "one", "half", "all"])
def test_adversarial_rows_by_many_programs(device, part) -> None:
    check(adversarial_rows().to(device), {"none": 0, "one": 1, "half": 18, "all": 36}[part])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.usefixtures("many_programs")
def test_many_programs_with_counts_per_row(device) -> None:
    check(mixed_rows(6, 300).to(device), 50, torch.tensor([0, 1, 50, 49, 20, 33], device=device))


@pytest.mark.parametrize("device", DEVICES)
def test_ordering_by_sort(device, monkeypatch) -> None:
    monkeypatch.setattr(launch, "RANK_MOST", 0)
    scores = mixed_rows(6, 70).to(device)
    check(scores, 40)
    check(scores, 40, torch.tensor([40, 0, 1, 17, 39, 16], device=device))
    check(scores.flatten(), 80, None, torch.tensor([0, 70, 75, 420], device=device))


@pytest.mark.parametrize("device", DEVICES)
def test_a_row_does_not_depend_on_others(device) -> None:
    scores = mixed_rows(4, 60).to(device)
    together = select_top_k(scores, 25)
    for row in range(4):
        assert torch.equal(select_top_k(scores[row : row + 1], 25), together[row : row + 1])


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_refused(device) -> None:
    for k in (-1, 6):
        with pytest.raises(ValueError, match=rf"k must lie in \[0, 5\].*got {k}"):
            select_top_k(torch.zeros(2, 5, device=device), k)
    with pytest.raises(ValueError, match="row_k must hold one number per row, 2; got 3"):
        select_top_k(torch.zeros(2, 5, device=device), 1, row_k=torch.zeros(3, dtype=torch.int64, device=device))


def check_random_rows(rows: int, count: int, device: str) -> None:
    """Rows of every kind, each with a count of its own between none and all."""
    row_k = torch.randint(0, count + 1, (rows,))
    check(mixed_rows(rows, count).to(device), count, row_k.to(device))


@pytest.mark.interpret
@pytest.mark.slow
def test_a_thousand_random_rows() -> None:
    check_random_rows(1000, 16, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "count"), [(60_000, 32), (30_000, 111), (10_000, 1000)])
def test_a_hundred_thousand_random_rows(rows, count) -> None:
    check_random_rows(rows, count, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("rows", "count", "k"),
    [
        (8, 32_736, 1024),
        (256, 8192, 512),
        (128, 65_536, 2048),
        (8, 131_040, 4096),
        (2, 1_000_000, 40_000),
        (6, 65_537, 65_537),
    ],
)
def test_long_rows(rows, count, k) -> None:
    check(mixed_rows(rows, count).to("cuda"), k)


@pytest.mark.gpu
def test_long_ragged_rows() -> None:
    lengths = torch.randint(0, 300_000, (12,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    scores = mixed_rows(12, 300_000).flatten()[: int(offsets[-1])]
    check(scores.to("cuda"), 3000, torch.randint(0, 3001, (12,)).to("cuda"), offsets.to("cuda"))


@pytest.mark.gpu
def test_both_forms_give_the_same_a_hundred_times(monkeypatch) -> None:
    """Atomic additions arrive in another order every time; the result must not show it."""
    scores = mixed_rows(12, 50_000).to("cuda")
    many = [select_top_k(scores, 5000) for _ in range(100)]
    monkeypatch.setattr(launch, "ROW_PROGRAM_MOST", 10**9)
    one = select_top_k(scores, 5000)
    assert all(torch.equal(one, other) for other in many)
