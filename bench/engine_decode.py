"""Cases of decoding: one step of one layer, on slots, against what stands in its place elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from transformers import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from kvcompress import Cake
from kvcompress.bench.eager import GatheringCache, SlotsWithoutEviction, exact_attention
from kvcompress.bench.measure import Case, CaseRow, Clock, Contender, measure, relative_error
from kvcompress.bench.one_layer import LayerDriver, attention_module, small_model

QUERY_HEADS, KV_HEADS, HEAD_DIM, WINDOW = 32, 8, 128, 32

Token = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def random_block(tokens: int, seed: int = 0) -> Token:
    """Queries, keys and values of a block: float32 ``[1, heads, tokens, HEAD_DIM]``."""
    generator = torch.Generator().manual_seed(seed)
    heads = (QUERY_HEADS, KV_HEADS, KV_HEADS)
    query, key, value = (torch.randn(1, n, tokens, HEAD_DIM, generator=generator) for n in heads)
    return query, key, value


def decode_step(*, quick: bool, clock: Clock = perf_counter) -> list[CaseRow]:
    """One decode step: 1056 slots with eviction against a growing full cache and against gathering each step."""
    slots, full = (160, 512) if quick else (1056, 8192)
    token = random_block(1, seed=1)
    contenders = [
        _on_slots(slots, token),
        _full_cache(full, token),
        _gathering(slots, token),
        _without_eviction(slots, token),
    ]
    shape = f"{slots} slots or {full} tokens, {QUERY_HEADS}/{KV_HEADS} heads, D={HEAD_DIM}"
    return measure(Case(name="decode_step", shape=shape), contenders, repeats=3 if quick else 40, clock=clock)


def _bytes(tokens: int, times: int = 1) -> int:
    """Bytes of the keys and values of that many tokens, moved that many times."""
    return times * tokens * KV_HEADS * HEAD_DIM * 2 * 4


def _on_slots(slots: int, token: Token) -> Contender:
    """The engine: Cake's default rule, every row full."""
    driver = LayerDriver(small_model(QUERY_HEADS, KV_HEADS, HEAD_DIM), Cake(cache_size=slots, window_size=WINDOW))
    driver.compress(*random_block(slots + 128))
    step = driver.stepper(*token)

    def error() -> float:
        step()  # from here on every step evicts
        store = driver.cache.layer(0).store
        if store is None:
            raise RuntimeError("the layer holds nothing after its prefill")
        # The next step overwrites the free slot of each row and sees all the others.
        taken = store.dense(store.slots.positions, -1) < 0
        keys = torch.where(taken[..., None], token[1], store.dense(store.slots.keys, 0.0))
        values = torch.where(taken[..., None], token[2], store.dense(store.slots.values, 0.0))
        expected = exact_attention(token[0], keys, values)
        return relative_error(step(), expected)

    return Contender(
        provider="kvcompress", run=step, error=error, calls=4, bytes_moved=_bytes(slots), counts_memory=True
    )


def _full_cache(tokens: int, token: Token) -> Contender:
    """Transformers' DynamicCache, whose update copies, and its sdpa attention."""
    module = attention_module(small_model(QUERY_HEADS, KV_HEADS, HEAD_DIM))
    cache = DynamicCache()
    _, key, value = random_block(tokens, seed=2)
    cache.update(key, value, 0)

    def step() -> torch.Tensor:
        keys, values = cache.update(token[1], token[2], 0)
        output: torch.Tensor = sdpa_attention_forward(module, token[0], keys, values, None, scaling=HEAD_DIM**-0.5)[0]
        return output

    def error() -> float:
        output = step()
        layer: Any = cache.layers[0]
        return relative_error(output, exact_attention(token[0], layer.keys, layer.values))

    return Contender(
        provider="dynamic_cache_sdpa",
        run=step,
        error=error,
        bytes_moved=_bytes(tokens, times=3),
        counts_memory=True,
    )


def _gathering(slots: int, token: Token) -> Contender:
    """The authors' way: a top-k and a copy of everything that stays, at each step."""
    module = attention_module(small_model(QUERY_HEADS, KV_HEADS, HEAD_DIM))
    _, key, value = random_block(slots, seed=3)
    cache = GatheringCache(module, key, value, WINDOW)

    def error() -> float:
        keys, values = torch.cat([cache.key, token[1]], dim=2), torch.cat([cache.value, token[2]], dim=2)
        return relative_error(cache.step(*token), exact_attention(token[0], keys, values))

    return Contender(
        provider="authors_gather",
        run=lambda: cache.step(*token),
        error=error,
        calls=2,
        bytes_moved=_bytes(slots, times=7),  # cat: 2; attention: 1; gather and cat: 2 + 2
        counts_memory=True,
    )


def _without_eviction(slots: int, token: Token) -> Contender:
    """The floor: the same slots, written and attended, and no word about which one goes."""
    _, key, value = random_block(slots + 1, seed=4)
    cache = SlotsWithoutEviction(key[0].clone(), value[0].clone())
    step: Callable[[], torch.Tensor] = lambda: cache.step(*token)  # noqa: E731

    def error() -> float:
        output = step()
        return relative_error(output, exact_attention(token[0], cache.key[None], cache.value[None]))

    return Contender(
        provider="slots_without_eviction",
        run=step,
        error=error,
        calls=4,
        bytes_moved=_bytes(slots),
        counts_memory=True,
    )
