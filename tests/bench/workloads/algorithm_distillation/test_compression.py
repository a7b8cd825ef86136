"""What is kept and merged of a held history, against plain loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcompress.bench.workloads.algorithm_distillation.compression import keep_attended_steps, pool, recent_tokens
from kvcompress.bench.workloads.algorithm_distillation.held_history import HeldHistory, HeldLayer

ROOMS, HEADS, DIM, LAYERS = 2, 2, 3, 2


def held(steps: int, seed: int = 0) -> HeldHistory:
    """Return `<bos>`, whole steps and a cell, with random states and attention."""
    tokens = 2 + 3 * steps
    generator = torch.Generator().manual_seed(seed)
    layers = [
        HeldLayer(
            keys=torch.randn(ROOMS, HEADS, tokens, DIM, generator=generator),
            values=torch.randn(ROOMS, HEADS, tokens, DIM, generator=generator),
            mass=torch.rand(ROOMS, HEADS, tokens, generator=generator),
        )
        for _ in range(LAYERS)
    ]
    return HeldHistory(layers=layers, merged=torch.ones(tokens))


def copied(history: HeldHistory) -> HeldHistory:
    layers = [HeldLayer(keys=x.keys.clone(), values=x.values.clone(), mass=x.mass.clone()) for x in history.layers]
    return HeldHistory(layers=layers, merged=history.merged.clone())


@settings(deadline=None, max_examples=40)
@given(steps=st.integers(8, 60), budget=st.integers(24, 120), seed=st.integers(0, 5))
def test_kept_steps_are_the_most_attended_ones(steps: int, budget: int, seed: int) -> None:
    history = held(steps, seed)
    kept = keep_attended_steps(copied(history), budget)
    if history.held <= budget:
        assert kept.held == history.held
        return
    assert budget - 3 < kept.held <= budget
    recent = recent_tokens(budget)
    old = (history.held - 1 - recent) // 3
    for room in range(ROOMS):
        mass = [
            sum(float(layer.mass[room, :, 1 + 3 * step : 4 + 3 * step].sum()) for layer in history.layers)
            for step in range(old)
        ]
        best = sorted(sorted(range(old), key=lambda step: -mass[step])[: (budget - 1 - recent) // 3])
        places = [0, *(1 + 3 * step + part for step in best for part in range(3))]
        places += range(history.held - recent, history.held)
        for before, after in zip(history.layers, kept.layers, strict=True):
            assert after.keys[room].equal(before.keys[room][:, places])
            assert after.values[room].equal(before.values[room][:, places])


@settings(deadline=None, max_examples=40)
@given(steps=st.integers(8, 80), budget=st.integers(24, 200), seed=st.integers(0, 5))
def test_pooling_loses_no_token_and_no_attention(steps: int, budget: int, seed: int) -> None:
    history = held(steps, seed)
    pooled = pool(copied(history), budget)
    assert pooled.held <= max(budget, 8)
    assert float(pooled.merged.sum()) == history.held
    recent = min(recent_tokens(budget), history.held)
    for before, after in zip(history.layers, pooled.layers, strict=True):
        torch.testing.assert_close(after.mass.sum(-1), before.mass.sum(-1))
        assert after.keys[:, :, 0].equal(before.keys[:, :, 0])
        assert after.keys[:, :, -recent:].equal(before.keys[:, :, -recent:])
        # A weighted mean stays between the smallest and the largest of what it is made of.
        assert float(after.keys.max()) <= float(before.keys.max()) + 1e-6
        assert float(after.values.min()) >= float(before.values.min()) - 1e-6


def test_merged_token_is_the_attention_weighted_mean_of_four() -> None:
    history = held(20)
    pooled = pool(copied(history), history.held - 3)
    assert pooled.merged.tolist() == [1, 4, *[1] * (history.held - 5)]
    for before, after in zip(history.layers, pooled.layers, strict=True):
        weights = before.mass[..., 1:5] / before.mass[..., 1:5].sum(-1, keepdim=True)
        torch.testing.assert_close(after.values[:, :, 1], (before.values[:, :, 1:5] * weights[..., None]).sum(2))
        torch.testing.assert_close(after.keys[:, :, 1], (before.keys[:, :, 1:5] * weights[..., None]).sum(2))


def test_tokens_without_attention_count_alike() -> None:
    history = held(20)
    for layer in history.layers:
        layer.mass[..., 1:5] = 0
    pooled = pool(copied(history), history.held - 3)
    torch.testing.assert_close(pooled.layers[0].keys[:, :, 1], history.layers[0].keys[:, :, 1:5].mean(2))


def test_whole_tokens_are_merged_before_merged_ones() -> None:
    history = held(40)
    once = pool(history, history.held - 30)
    twice = pool(copied(once), once.held - 6)
    assert set(twice.merged.tolist()) == {1.0, 4.0}
    assert int((twice.merged > 1).sum()) == 12


@pytest.mark.parametrize("budget", [24, 61, 600])
def test_latest_tokens_take_half_of_the_budget_at_most(budget: int) -> None:
    assert recent_tokens(budget) <= budget / 2 + 1
    assert recent_tokens(budget) % 3 == 1


def test_attention_is_added_up_over_queries_and_heads_of_a_group() -> None:
    layer = HeldLayer(keys=torch.empty(0), values=torch.empty(0), mass=torch.ones(1, 2, 2))
    attention = torch.rand(1, 4, 3, 5)
    layer.add_mass(attention)
    assert layer.mass.shape == (1, 2, 5)
    expected = attention[:, :2].sum(dim=(1, 2)) + torch.tensor([1.0, 1, 0, 0, 0])
    torch.testing.assert_close(layer.mass[:, 0], expected)
