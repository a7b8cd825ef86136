"""The engine's hot paths, small enough to run all of them in a minute: `make bench`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kvcompress import Cake
from kvcompress.bench.engine_decode import HEAD_DIM, KV_HEADS, QUERY_HEADS, WINDOW, random_block
from kvcompress.bench.engine_prefill import window_inputs
from kvcompress.bench.one_layer import LayerDriver, small_model
from kvcompress.engine.store import SlotStore
from kvcompress.kernels.compact.reference import Packed, RowPlan, Slots
from kvcompress.kernels.dispatch import operation
from kvcompress.policies.layer_allocators import apportion
from kvcompress.policies.scorers import WindowAttention

TOKENS = 4096
BUDGET = 1024

Benchmark = Callable[..., Any]


def full_store(rows: int, length: int) -> SlotStore:
    generator = torch.Generator().manual_seed(0)
    count = rows * length
    keys, values = (torch.randn(count, HEAD_DIM, generator=generator) for _ in range(2))
    positions = torch.arange(length).repeat(rows)
    scores = torch.rand(count, generator=generator)
    offsets = torch.arange(rows + 1) * length
    return SlotStore(Packed(Slots(keys, values, positions, scores), offsets), [length] * rows, rows, "torch")


@pytest.mark.parametrize("rule", ["last_query", "ema"])
@torch.inference_mode()
def test_decode_step(benchmark: Benchmark, rule: str) -> None:
    policy = Cake(cache_size=BUDGET + WINDOW, window_size=WINDOW, decode=rule)
    driver = LayerDriver(small_model(QUERY_HEADS, KV_HEADS, HEAD_DIM), policy)
    driver.compress(*random_block(BUDGET + 256))
    step = driver.stepper(*random_block(1, seed=1))
    output = benchmark(step)
    assert torch.isfinite(output).all()
    held = driver.cache.kept_positions(0)
    assert held.shape[-1] == BUDGET + WINDOW


@torch.inference_mode()
def test_window_scores(benchmark: Benchmark) -> None:
    scores = benchmark(WindowAttention(gamma=200.0), window_inputs(*random_block(TOKENS)))
    assert scores.token_scores.shape == (1, KV_HEADS, TOKENS - WINDOW)


def test_select(benchmark: Benchmark) -> None:
    scores = torch.rand(KV_HEADS, TOKENS, generator=torch.Generator().manual_seed(0))
    chosen = benchmark(operation("select_top_k", "torch"), scores, BUDGET)
    assert torch.equal(scores.gather(-1, chosen), scores.topk(BUDGET, dim=-1).values)


@torch.inference_mode()
def test_compact(benchmark: Benchmark) -> None:
    _, key, value = random_block(TOKENS)
    positions = torch.arange(TOKENS).expand(1, KV_HEADS, TOKENS)
    scores = torch.rand(1, KV_HEADS, TOKENS)
    chosen = torch.stack([torch.randperm(TOKENS)[:BUDGET] for _ in range(KV_HEADS)])
    none, starts = [0] * KV_HEADS, [row * TOKENS for row in range(KV_HEADS)]
    plan = RowPlan([BUDGET] * KV_HEADS, starts, [BUDGET] * KV_HEADS, none, none)
    packed = benchmark(operation("compact", "torch"), key, value, positions, scores, plan, chosen)
    wide = chosen[None, ..., None].expand(1, KV_HEADS, BUDGET, HEAD_DIM)
    assert torch.equal(packed.slots.keys, key.gather(2, wide).view(-1, HEAD_DIM))


@torch.inference_mode()
def test_compress_layer(benchmark: Benchmark) -> None:
    policy = Cake(cache_size=BUDGET + WINDOW, window_size=WINDOW)
    driver = LayerDriver(small_model(QUERY_HEADS, KV_HEADS, HEAD_DIM), policy)
    benchmark(driver.compress, *random_block(TOKENS))
    assert driver.cache.kept_positions(0).shape[-1] == BUDGET + WINDOW


def test_store_trim(benchmark: Benchmark) -> None:
    def setup() -> tuple[tuple[SlotStore], dict[str, Any]]:
        return (full_store(KV_HEADS, 2 * BUDGET),), {}

    def trim(store: SlotStore) -> SlotStore:
        store.trim([2 * BUDGET - 1] * KV_HEADS, [BUDGET - 1] * KV_HEADS)
        return store

    store = benchmark.pedantic(trim, setup=setup, rounds=20, warmup_rounds=2)  # type: ignore[attr-defined]
    assert store.lengths == [BUDGET] * KV_HEADS


def test_store_grow(benchmark: Benchmark) -> None:
    def setup() -> tuple[tuple[SlotStore], dict[str, Any]]:
        return (full_store(KV_HEADS, BUDGET),), {}

    def grow(store: SlotStore) -> SlotStore:
        store.grow([BUDGET // 8] * KV_HEADS)
        return store

    store = benchmark.pedantic(grow, setup=setup, rounds=20, warmup_rounds=2)  # type: ignore[attr-defined]
    assert store.lengths == [BUDGET + BUDGET // 8] * KV_HEADS


def test_apportion(benchmark: Benchmark) -> None:
    layers = 80
    weights = torch.randn(layers, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    budgets = benchmark(apportion, weights, layers * BUDGET, [TOKENS] * layers)
    assert sum(budgets) == layers * BUDGET
