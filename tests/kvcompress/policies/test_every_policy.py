"""What holds for each policy, whatever it scores: budgets, rows of a batch, blocks, decoding, the cascade."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from kvcompress import POLICIES, AdaKV, Cake, CompressedCache, CriticalKV, Full, Policy, SnapKV, make_policy
from tests.kvcompress.engine.architectures import shared_model
from tests.kvcompress.engine.helpers import (
    NO_EVICTION,
    PADDED_ROWS,
    difference,
    forward,
    kept,
    left_padded,
    prompt,
    teacher_forced,
)

SMALL: dict[str, Any] = {"cache_size": 40, "window_size": 8}
LAYERS, HEADS = 4, 2
TOKENS, SHORTER, STEPS = 150, 60, 12  # more than one chunk of 128 queries

POLICIES_HERE: dict[str, Callable[..., Policy]] = {
    **{
        name: lambda name=name, **size: make_policy(name, **(SMALL | size))
        for name in sorted(set(POLICIES) - {"full", "cake_reference"})
    },
    "adakv-cake": lambda **size: make_policy("adakv", base="cake", sink_tokens=2, **(SMALL | size)),
    "adakv-criticalkv": lambda **size: make_policy("adakv", base="criticalkv", floor=0.0, **(SMALL | size)),
    "criticalkv-adakv-h2o": lambda **size: CriticalKV(base=AdaKV(base=make_policy("h2o", **(SMALL | size)))),
    "layer-global-floors": lambda **size: make_policy(
        "layer_defensivekv", layer_floor=0.5, floor=0.3, decode="accumulate", **(SMALL | size)
    ),
}
every_policy = pytest.mark.parametrize("policy", POLICIES_HERE)
architectures = pytest.mark.parametrize("architecture", ["llama", "phi"])


def positions(cache: CompressedCache, row: int = 0, offset: int = 0) -> list[list[list[int]]]:
    """Positions that each head of each layer keeps."""
    return [kept(cache, layer, row, offset) for layer in range(LAYERS)]


def count(cache: CompressedCache, row: int = 0) -> int:
    """Tokens of one batch row over all layers and heads."""
    return sum(len(head) for layer in positions(cache, row) for head in layer)


@every_policy
@architectures
def test_budgets_are_exact_over_layers_and_heads(policy, architecture) -> None:
    model = shared_model(architecture)
    cache = CompressedCache(model, POLICIES_HERE[policy]())
    ids, mask = left_padded([prompt(TOKENS), prompt(SHORTER, seed=1), prompt(20, seed=2)])
    forward(model, cache, ids, mask)
    assert [count(cache, row) for row in range(3)] == [LAYERS * HEADS * n for n in (40, 40, 20)]
    protected = set(range(TOKENS - POLICIES_HERE[policy]().window_size, TOKENS))
    assert all(protected <= set(head) for row in range(3) for layer in positions(cache, row) for head in layer)


@every_policy
@architectures
def test_a_row_keeps_in_a_padded_batch_what_it_keeps_alone(policy, architecture) -> None:
    model = shared_model(architecture)
    rows = [prompt(TOKENS), prompt(SHORTER, seed=1)]
    forced = torch.cat([prompt(STEPS, seed=7), prompt(STEPS, seed=8)])
    together = CompressedCache(model, POLICIES_HERE[policy]())
    logits = teacher_forced(model, together, *_with_forced(left_padded(rows), forced))
    for i, row in enumerate(rows):
        alone = CompressedCache(model, POLICIES_HERE[policy]())
        own = teacher_forced(model, alone, row, forced[i : i + 1])
        assert positions(together, i, TOKENS - row.shape[1]) == positions(alone)
        assert difference(logits[i], own[0]) <= PADDED_ROWS


def _with_forced(padded: tuple[torch.Tensor, torch.Tensor], forced: torch.Tensor) -> tuple[torch.Tensor, ...]:
    ids, mask = padded
    return ids, forced, mask


@every_policy
def test_decoding_keeps_the_bound_or_grows_by_one(policy) -> None:
    model, made = shared_model("llama"), POLICIES_HERE[policy]()
    cache = CompressedCache(model, made)
    forward(model, cache, prompt(TOKENS))
    before, sizes = count(cache), [[len(head) for head in layer] for layer in positions(cache)]
    for step in range(STEPS):
        forward(model, cache, prompt(1, seed=step))
    if made.decode_rule.grows:
        assert [[len(head) for head in layer] for layer in positions(cache)] == [[n + STEPS for n in s] for s in sizes]
    else:
        assert before <= count(cache) <= before + LAYERS * HEADS, "one slot more is the token that has just come in"
    last = set(range(TOKENS + STEPS - made.window_size, TOKENS + STEPS))
    assert all(last <= set(head) for layer in positions(cache) for head in layer)


@every_policy
def test_blocks_without_eviction_are_the_full_cache(policy) -> None:
    model = shared_model("llama")
    cache, full = CompressedCache(model, POLICIES_HERE[policy](cache_size=400)), DynamicCache(config=model.config)
    ids = prompt(TOKENS)
    for block in (ids[:, :70], ids[:, 70:75], ids[:, 75:], prompt(1, seed=3)):
        assert difference(forward(model, cache, block), forward(model, full, block)) <= NO_EVICTION
    assert count(cache) == LAYERS * HEADS * (TOKENS + 1)


@every_policy
def test_blocks_with_eviction_keep_the_budget(policy) -> None:
    model = shared_model("llama")
    cache = CompressedCache(model, POLICIES_HERE[policy]())
    ids, mask = left_padded([prompt(TOKENS), prompt(SHORTER, seed=1)])
    for start, end in ((0, 100), (100, 130), (130, TOKENS)):
        forward(model, cache, ids[:, start:end], mask[:, :end])
        for row in range(2):
            seen = int(mask[row, :end].sum())
            # Rows that hold different numbers have different ones to offer: some may fall short, none exceeds.
            assert count(cache, row) <= LAYERS * HEADS * min(40, seen)
    assert all(count(cache, row) > LAYERS * HEADS * 20 for row in range(2))


@every_policy
@pytest.mark.parametrize("tokens", [1, 2, 4, 8, 9])
def test_short_prompts_lose_nothing(policy, tokens) -> None:
    model = shared_model("phi")
    cache = CompressedCache(model, POLICIES_HERE[policy]())
    logits = teacher_forced(model, cache, prompt(tokens), prompt(3, seed=1))
    assert torch.isfinite(logits).all()
    assert positions(cache) == [[list(range(tokens + 3))] * HEADS] * LAYERS


CASCADED = ["pyramidkv", "adakv", "adakv-cake", "adakv-criticalkv", "layer_defensivekv", "layer-global-floors"]


@settings(max_examples=12)
@given(st.sampled_from(CASCADED), st.integers(0, 10**6), st.integers(20, 160), st.integers(10, 60), st.integers(1, 3))
def test_cascade_equals_one_shot(policy, seed, tokens, cache_size, every) -> None:
    """Allocating after every layer, every few, or once at the end keeps exactly the same tokens."""
    model = shared_model("llama")
    ids, mask = left_padded([prompt(tokens, seed), prompt(max(tokens - 17, 3), seed + 1)])
    outcomes = []
    for cascade_every in (every, LAYERS):
        cache = CompressedCache(model, POLICIES_HERE[policy](cache_size=cache_size), cascade_every=cascade_every)
        forward(model, cache, ids, mask)
        outcomes.append([positions(cache, row) for row in range(2)])
    assert outcomes[0] == outcomes[1]


def test_a_growing_row_takes_nothing_from_a_poor_one() -> None:
    """While decoding, each head of an adaptive layer stays as long as prefill made it."""
    model = shared_model("llama")
    cache = CompressedCache(model, make_policy("adakv", **SMALL, floor=0.0, decode="accumulate"))
    forward(model, cache, prompt(TOKENS))
    sizes = [[len(head) for head in layer] for layer in positions(cache)]
    assert any(len(set(layer)) > 1 for layer in sizes), "heads differ, or this shows nothing"
    for step in range(30):
        forward(model, cache, prompt(1, seed=step))
    after = [[len(head) for head in layer] for layer in positions(cache)]
    assert all(a - b in (0, 1) for x, y in zip(after, sizes, strict=True) for a, b in zip(x, y, strict=True))


class TestWrappers:
    def test_take_their_sizes_from_the_base(self) -> None:
        policy = AdaKV(base=CriticalKV(base=Cake(cache_size=64, window_size=4, sink_tokens=2, decode="ema")))
        assert (policy.cache_size, policy.window_size, policy.sink_tokens) == (64, 4, 2)
        assert policy.decode_rule == Cake(cache_size=64, decode="ema").decode_rule
        assert policy.layer_allocator == Cake(cache_size=64).layer_allocator
        assert policy.budget(100) == 60

    def test_by_name_hand_on_what_they_do_not_know(self) -> None:
        made = make_policy("adakv", base="criticalkv", cache_size=64, floor=0.1, first_stage=0.3, pool_size=7)
        snapkv = SnapKV(cache_size=64, pool_size=7)
        assert made == AdaKV(base=CriticalKV(base=snapkv, first_stage=0.3), floor=0.1)
        assert make_policy("adakv", compression_ratio=0.5).base == SnapKV(compression_ratio=0.5)
        assert make_policy("adakv", base=snapkv) == AdaKV(base=snapkv)

    def test_the_order_of_two_wrappers_does_not_matter(self) -> None:
        model, caches = shared_model("llama"), []
        for name, base in (("adakv", "criticalkv"), ("criticalkv", "adakv")):
            caches.append(CompressedCache(model, make_policy(name, base=base, **SMALL)))
            forward(model, caches[-1], prompt(TOKENS))
        assert positions(caches[0]) == positions(caches[1])


SIZE = {"cache_size": 64}


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: AdaKV(base="snapkv"), TypeError, "make_policy"),
        (lambda: AdaKV(base=Full()), ValueError, "a policy that evicts"),
        (lambda: make_policy("adakv", base="cake_reference", **SIZE), ValueError, "Use Cake"),
        (lambda: make_policy("adakv", base="nothing", **SIZE), ValueError, "policy must be one of"),
        (lambda: make_policy("adakv", **SIZE, tau1=1.0), TypeError, "'snapkv' has no parameter tau1"),
        (lambda: make_policy("adakv", base=SnapKV(**SIZE), tau1=1.0), TypeError, "no parameter tau1"),
        (lambda: make_policy("adakv"), ValueError, "exactly one of cache_size"),
        (lambda: make_policy("adakv", **SIZE, floor=1.5), ValueError, r"floor is a fraction"),
        (lambda: make_policy("criticalkv", **SIZE, first_stage=-0.1), ValueError, "first_stage"),
        (lambda: make_policy("criticalkv", **SIZE, epsilon=float("inf")), ValueError, "epsilon must be finite"),
        (lambda: make_policy("criticalkv", base="knorm", **SIZE), ValueError, "not attention"),
        (lambda: make_policy("defensivekv", **SIZE, pool_size=2), ValueError, "pool_size must be odd"),
        (lambda: make_policy("layer_defensivekv", **SIZE, layer_floor=2), ValueError, "layer_floor is a fraction"),
        (lambda: make_policy("pyramidkv", **SIZE, beta=0.5), ValueError, "beta must be at least 1"),
        (lambda: make_policy("pyramidkv", **SIZE, pool_size=0), ValueError, "pool_size must be at least 1"),
        (lambda: make_policy("expected_attention", **SIZE, future=0), ValueError, "future must be at least 1"),
        (lambda: make_policy("expected_attention", **SIZE, epsilon=-1.0), ValueError, "epsilon"),
        (lambda: make_policy("h2o", **SIZE, decode="never"), ValueError, "decode must be one of"),
        (lambda: make_policy("h2o", **SIZE, decode="stored"), ValueError, "cannot score a token"),
        (lambda: SnapKV(**SIZE, decode="stored"), ValueError, "Choose one of last_query"),
        (lambda: make_policy("tova", cache_size=3, window_size=4), ValueError, "at least window_size"),
    ],
)
def test_bad_parameters_name_the_rule(make, error, words) -> None:
    with pytest.raises(error, match=words):
        make()
