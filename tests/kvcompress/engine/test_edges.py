"""Sizes at the edge, sinks, holes in the mask, the order of the cascade."""

import pytest
import torch
from transformers import PreTrainedModel

from kvcompress import Cake, CakeCache, CompressedCache, make_policy
from tests.kvcompress.engine.architectures import shared_model
from tests.kvcompress.engine.helpers import (
    LONG,
    MEDIUM,
    NO_EVICTION,
    STEPS,
    difference,
    forward,
    full_cache,
    greedy,
    kept,
    left_padded,
    prompt,
    teacher_forced,
)
from tests.kvcompress.engine.policies import (
    ALL_POLICIES,
    SMALL,
    WINDOW,
    every_pair,
    new_cache,
)

LENGTHS = {"one": 1, "two": 2, "below-window": WINDOW - 1, "window": WINDOW, "above-window": WINDOW + 1, "cache": 40}


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
@every_pair(ALL_POLICIES)
def test_short_prompts_lose_nothing(model: PreTrainedModel, policy: str, length: int) -> None:
    cache = new_cache(model, policy)
    expected = teacher_forced(model, full_cache(model), prompt(length), prompt(1, 1))
    assert difference(teacher_forced(model, cache, prompt(length), prompt(1, 1)), expected) <= NO_EVICTION


@pytest.mark.parametrize("length", [1, 2, 7, 40])
@every_pair(["cake", "snapkv", "cake-reference", "random", "streaming-llm"])
def test_window_of_one_and_no_budget(model: PreTrainedModel, policy: str, length: int) -> None:
    sinks = {"sink_tokens": 0} if policy == "streaming-llm" else {}
    name = policy.replace("-", "_")
    for cache_size in (1, 2, 5):
        cache = CompressedCache(model, make_policy(name, cache_size=cache_size, window_size=1, **sinks))
        logits = teacher_forced(model, cache, prompt(length), prompt(STEPS, 1))
        assert torch.isfinite(logits).all()
        counts = [len(kept(cache, layer.layer_idx)[0]) for layer in cache.compressed_layers]
        assert min(counts) >= 1
        if policy != "snapkv":
            assert sum(counts) <= cache_size * len(counts)


@pytest.mark.parametrize("policy", ["cake", "snapkv", "cake_reference"])
def test_budget_zero_keeps_exactly_the_window(llama: PreTrainedModel, policy: str) -> None:
    cache = CompressedCache(llama, make_policy(policy, cache_size=WINDOW, window_size=WINDOW))
    forward(llama, cache, prompt(LONG))
    for layer in cache.compressed_layers:
        assert kept(cache, layer.layer_idx) == [list(range(LONG - WINDOW, LONG))] * 2


@pytest.mark.parametrize("decode", ["last_query", "ema", "accumulate", "keep_prompt", "position", "off"])
def test_sinks_are_kept(model: PreTrainedModel, decode: str) -> None:
    ids, mask = left_padded([prompt(LONG), prompt(MEDIUM, 2)])
    policy = Cake(cache_size=16, window_size=4, sink_tokens=3, decode=decode)
    cache = CompressedCache(model, policy)
    teacher_forced(model, cache, ids, torch.cat([prompt(STEPS, 1), prompt(STEPS, 2)]), mask)
    for layer in cache.compressed_layers:
        for row, start in enumerate((0, LONG - MEDIUM)):
            for head in kept(cache, layer.layer_idx, row, start):
                oldest = 0 if layer.sliding_window is None else head[-1] + 1 - layer.sliding_window
                assert {p for p in range(3) if p >= oldest} <= set(head)


def test_sinks_of_a_sliding_layer_leave_with_the_window() -> None:
    model = shared_model("mistral-sliding")
    plain, sinks = (CompressedCache(model, Cake(cache_size=16, window_size=4, sink_tokens=count)) for count in (0, 3))
    for cache in (plain, sinks):
        forward(model, cache, prompt(LONG))
    for layer in plain.compressed_layers:  # the first three tokens are long gone: nothing else may take their privilege
        assert kept(plain, layer.layer_idx) == kept(sinks, layer.layer_idx)


@every_pair(["full", "cake-large"])
def test_holes_in_the_attention_mask(model: PreTrainedModel, policy: str) -> None:
    mask = torch.ones(2, LONG, dtype=torch.long)
    mask[0, 20:30] = 0
    mask[1, :5] = 0
    mask[1, 70:73] = 0
    ids = torch.cat([prompt(LONG), prompt(LONG, 1)])
    forced = torch.cat([prompt(STEPS, 2), prompt(STEPS, 3)])
    cache = new_cache(model, policy)
    expected = teacher_forced(model, full_cache(model), ids, forced, mask)
    assert difference(teacher_forced(model, cache, ids, forced, mask), expected) <= NO_EVICTION


def test_holes_are_never_kept(llama: PreTrainedModel) -> None:
    mask = torch.ones(1, LONG, dtype=torch.long)
    mask[0, 20:60] = 0
    cache = new_cache(llama, "cake")
    forward(llama, cache, prompt(LONG), mask)
    for layer in cache.compressed_layers:
        for head in kept(cache, layer.layer_idx):
            assert not set(head) & set(range(20, 60))


@pytest.mark.parametrize("every", [2, 3, 100])
@every_pair(["cake", "cake-ema", "snapkv"])
def test_cascading_less_often_keeps_the_same_tokens(model: PreTrainedModel, policy: str, every: int) -> None:
    ids, mask = left_padded([prompt(LONG), prompt(MEDIUM, 2)])
    forced = torch.cat([prompt(STEPS, 1), prompt(STEPS, 2)])
    often, seldom = new_cache(model, policy), new_cache(model, policy, cascade_every=every)
    assert torch.equal(
        teacher_forced(model, often, ids, forced, mask), teacher_forced(model, seldom, ids, forced, mask)
    )
    for layer in often.compressed_layers:
        assert torch.equal(often.kept_positions(layer.layer_idx), seldom.kept_positions(layer.layer_idx))


def test_cake_cache_is_the_policy_cake(llama: PreTrainedModel) -> None:
    short = CakeCache(llama, 40, WINDOW, tau1=1.5, tau2=0.5, gamma=100.0)
    long = CompressedCache(llama, Cake(**SMALL, tau1=1.5, tau2=0.5, gamma=100.0))
    assert torch.equal(greedy(llama, short, prompt(LONG)), greedy(llama, long, prompt(LONG)))
    assert kept(short, 0) == kept(long, 0)
