"""Which units are dropped, and what a plan keeps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.analysis.pruning.importance import Importance, LayerImportance
from kvcompress.analysis.pruning.order import ORDERS, dropped_count, kept
from kvcompress.analysis.pruning.plan import WHATS, make_plan

HEADS, TOKENS, KEY_DIM, VALUE_DIM, LAYERS = 2, 10, 6, 4, 3


def scores(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def importance() -> Importance:
    return tuple(
        LayerImportance(
            layer=layer,
            positions=torch.arange(TOKENS),
            tokens=scores(HEADS, TOKENS, seed=layer),
            heads=scores(HEADS, seed=10 + layer),
            key_dimensions=scores(HEADS, KEY_DIM, seed=20 + layer),
            value_dimensions=scores(HEADS, VALUE_DIM, seed=30 + layer),
        )
        for layer in range(LAYERS)
    )


@given(
    st.lists(st.floats(allow_nan=False), min_size=1, max_size=20),
    st.sampled_from(ORDERS),
    st.floats(0, 1),
    st.integers(0, 9),
)
def test_exactly_so_many_are_dropped_and_never_a_better_one(
    values: list[float], order: str, ratio: float, seed: int
) -> None:
    row = torch.tensor(values, dtype=torch.float64)
    count = dropped_count(len(values), ratio)
    keep = kept(row, count, order, seed)  # type: ignore[arg-type]
    assert int((~keep).sum()) == count
    assert torch.equal(keep, kept(row, count, order, seed))  # type: ignore[arg-type]
    if 0 < count < len(values):
        if order == "least_important":
            assert row[~keep].max() <= row[keep].min()
        if order == "first":
            assert keep.tolist() == [False] * count + [True] * (len(values) - count)
        if order == "last":
            assert keep.tolist() == [True] * (len(values) - count) + [False] * count


def test_equal_scores_go_by_index_and_rows_alone() -> None:
    rows = torch.tensor([[1.0, 1.0, 1.0], [3.0, 2.0, 1.0]])
    assert kept(rows, 1, "least_important").tolist() == [[False, True, True], [True, True, False]]


def test_random_rows_differ_with_row_and_seed() -> None:
    first, second = (kept(torch.zeros(2, 64), 32, "random", seed) for seed in (0, 1))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.05, 1), (0.149, 1), (0.15, 2), (1.0, 10)])
def test_ratios_are_rounded_to_the_nearest(ratio: float, count: int) -> None:
    assert dropped_count(10, ratio) == count


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 1.0])
def test_a_plan_keeps_what_its_count_says(what: str, order: str, ratio: float, importance: Importance) -> None:
    plan = make_plan(importance, what, ratio, order, 0)  # type: ignore[arg-type]
    whole = LAYERS * HEADS * TOKENS * (KEY_DIM + VALUE_DIM)
    assert (
        plan.units
        == {
            "layers": LAYERS,
            "heads": LAYERS * HEADS,
            "tokens": LAYERS * HEADS * TOKENS,
            "dimensions": LAYERS * HEADS * (KEY_DIM + VALUE_DIM),
        }[what]
    )
    assert plan.entries == whole * (plan.units - plan.dropped) // plan.units
    if ratio in (0.0, 1.0):
        assert plan.dropped == ratio * plan.units


def test_the_least_important_layer_and_head_go_first(importance: Importance) -> None:
    layer = min(range(LAYERS), key=lambda index: importance[index].whole)
    plan = make_plan(importance, "layers", 1 / LAYERS, "least_important")
    assert [bool(plan.layers[index].tokens.any()) for index in range(LAYERS)] == [
        index != layer for index in range(LAYERS)
    ]
    heads = torch.stack([entry.heads for entry in importance])
    plan = make_plan(importance, "heads", 1 / heads.numel(), "least_important")
    gone = [
        (index, head) for index in range(LAYERS) for head in range(HEADS) if not plan.layers[index].tokens[head].any()
    ]
    assert gone == [divmod(int(heads.argmin()), HEADS)]


def test_bad_requests_are_refused(importance: Importance) -> None:
    with pytest.raises(ValueError, match="what must be one of layers, heads, dimensions, tokens; got 'experts'"):
        make_plan(importance, "experts", 0.5, "first")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="order must be one of"):
        make_plan(importance, "heads", 0.5, "best")  # type: ignore[arg-type]
    for ratio in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"fraction DROPPED and must lie in \[0, 1\]"):
            make_plan(importance, "heads", ratio, "first")
    with pytest.raises(ValueError, match="scores must not be NaN"):
        kept(torch.tensor([torch.nan]), 0, "first")
    with pytest.raises(ValueError, match=r"dropped must be in \[0, 2\]"):
        kept(torch.zeros(2), 3, "first")
