"""Changes of attention from step to step, against plain loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.analysis.metrics.step_change import change, change_map, changes
from tests.analysis.metrics.maps import random_attention
from tests.tolerances import assert_close


@pytest.mark.parametrize("new_keys", [0, 1, 7])
def test_change_is_the_plain_formula(new_keys: int) -> None:
    before, after = random_attention(2, 3, 10), random_attention(2, 3, 10 + new_keys, seed=1)
    found, difference = change(before, after), change_map(before, after)
    for head in range(2):
        for query in range(3):
            old = before[head, query].tolist() + [0.0] * new_keys
            new = after[head, query].tolist()
            deltas = [b - a for a, b in zip(old, new, strict=True)]
            assert difference[head, query].tolist() == pytest.approx(deltas)
            assert float(found.total_variation[head, query]) == pytest.approx(sum(map(abs, deltas)) / 2)
            cosine = sum(a * b for a, b in zip(old, new, strict=True)) / math.hypot(*old) / math.hypot(*new)
            assert float(found.cosine[head, query]) == pytest.approx(cosine)
            assert float(found.largest[head, query]) == pytest.approx(max(map(abs, deltas)))


@given(st.integers(1, 5), st.integers(1, 30), st.integers(0, 50), st.sampled_from([0.1, 2.0, 100.0]))
def test_change_laws(queries: int, keys: int, seed: int, sharpness: float) -> None:
    one = random_attention(queries, keys, seed=seed, sharpness=sharpness)
    other = random_attention(queries, keys, seed=seed + 1, sharpness=sharpness)
    third = random_attention(queries, keys, seed=seed + 2, sharpness=sharpness)
    found = change(one, other)
    assert bool(((found.total_variation >= 0) & (found.total_variation <= 1 + 1e-12)).all())
    assert bool((found.largest <= found.total_variation + 1e-12).all())
    assert bool(((found.cosine >= 0) & (found.cosine <= 1)).all())
    assert_close(change(other, one).total_variation, found.total_variation)
    around = found.total_variation + change(other, third).total_variation
    assert bool((change(one, third).total_variation <= around + 1e-12).all())
    still = change(one, one)
    assert float(still.total_variation.max()) == 0
    assert_close(still.cosine, torch.ones(queries).double())
    assert_close(change_map(one, other), -change_map(other, one))


def test_changes_go_from_each_map_to_the_next() -> None:
    maps = [random_attention(2, 3, 4 + step, seed=step) for step in range(4)]
    found = changes(maps)
    assert len(found) == 3
    assert torch.equal(found[1].total_variation, change(maps[1], maps[2]).total_variation)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="at least two"):
        changes([random_attention(2, 3)])
    for shapes in (((2, 3), (3, 3)), ((2, 5), (2, 3)), ((1, 2, 3), (2, 2, 3))):
        with pytest.raises(ValueError, match="same shape"):
            change_map(random_attention(*shapes[0]), random_attention(*shapes[1]))
    with pytest.raises(ValueError, match="after must be finite"):
        change(random_attention(2, 3), torch.full((2, 3), math.nan))
