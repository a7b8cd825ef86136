"""When budgets are allocated and layers trimmed changes what is held meanwhile and what is asked, not what is kept."""

import functools
import gc
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from kvcompress import (
    AdaKV,
    Cake,
    CompressedCache,
    EvictEvent,
    Full,
    Observer,
    Policy,
    make_policy,
)
from kvcompress.errors import CacheStateError
from tests.kvcompress.engine.architectures import build, shared_model
from tests.kvcompress.engine.cascades import HUGE, LAYERS, Order, block_bytes, cache_with, device, interrupted
from tests.kvcompress.engine.helpers import LONG, MEDIUM, SHORT, forward, left_padded, prompt
from tests.kvcompress.engine.policies import EVICTING_POLICIES, SMALL, WINDOW
from tests.kvcompress.engine.test_memory import reachable_bytes

PER_SLOT = 2 * 8 * 4 + 8 + 4  # keys and values of 8 float32, position, score
LAWFUL: dict[str, Policy] = {name: make() for name, make in EVICTING_POLICIES.items() if name != "cake-reference"} | {
    "full": Full(),
    "pyramidkv": make_policy("pyramidkv", **SMALL),
    "adakv-no-floor": make_policy("adakv", base="cake", floor=0.0, **SMALL, decode="accumulate"),
    "adakv-ladders": AdaKV(base=make_policy("layer_defensivekv", **SMALL, decode="ema")),
}


def state(cache: CompressedCache) -> list[torch.Tensor]:
    """All that a prefill leaves behind: the slots in their order, the rows, the statistics."""
    found: list[torch.Tensor | None] = []
    for layer in cache.compressed_layers:
        assert layer.store is not None
        assert layer.statistics is not None
        numbers = layer.statistics
        found += [*layer.store.slots, layer.store.row_offsets, layer.store.next_slot, numbers.budget]
        found += [numbers.token_scores, numbers.entropy, numbers.variance, numbers.preference]
    return [tensor.clone() for tensor in found if tensor is not None]


def conversation(cache: CompressedCache, model: PreTrainedModel) -> list[torch.Tensor]:
    """A left-padded batch, its prompt in two chunks, then two turns of decoding: every state and logit on the way."""
    ids, mask = left_padded([prompt(LONG), prompt(MEDIUM, 2), prompt(SHORT, 3)])
    found = []
    for chunk in (slice(0, 70), slice(70, LONG)):
        found += [forward(model, cache, ids[:, chunk], mask[:, : chunk.stop]), *state(cache)]
    for length in (1, 1, 1, 25, 1, 1):
        mask = torch.cat([mask, mask.new_ones(3, length)], dim=1)
        found.append(forward(model, cache, prompt(length, length).repeat(3, 1), mask))
        found += state(cache) if length > 1 else []
    return [*found, *(cache.kept_positions(layer.layer_idx) for layer in cache.compressed_layers)]


@functools.cache
def trimmed_at_once(name: str, policy: str) -> list[torch.Tensor]:
    model = shared_model(name)
    return conversation(cache_with(model, LAWFUL[policy], 0, cascade_every=1, keep_statistics=True), model)


@given(
    name=st.sampled_from(["llama", "gemma3", "mistral-sliding"]),
    policy=st.sampled_from(sorted(LAWFUL)),
    every=st.integers(1, LAYERS),
    slack=st.sampled_from([0, 1, 2_000, 20_000, 60_000, HUGE]),
    slow=st.booleans(),
)
def test_the_same_is_kept_whenever_layers_wait_or_are_trimmed(
    name: str, policy: str, every: int, slack: int, slow: bool
) -> None:
    model, expectation = shared_model(name), trimmed_at_once(name, policy)
    cache = cache_with(model, LAWFUL[policy], slack, cascade_every=every, keep_statistics=True)
    with device(slow):
        found = conversation(cache, model)
    for got, expected in zip(found, expectation, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


class Held(Observer):
    """Samples what is held whenever something happens."""

    def __init__(self, cache: CompressedCache) -> None:
        self.cache, self.bytes, self.pending = cache, [0], [0]

    def sample(self, *_: Any) -> None:
        self.bytes.append(self.cache.num_bytes)
        self.pending.append(self.cache.cascade.pending_bytes)

    on_prefill = on_evict = sample  # type: ignore[assignment]


@pytest.mark.parametrize("slow", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("blocks", [0, 0.5, 1.5, 2.5, 10])
@pytest.mark.parametrize("policy", [Cake(**SMALL), AdaKV(base=Cake(**SMALL))], ids=["cake", "adakv"])
def test_a_prefill_holds_its_budgets_one_layer_and_the_slack(policy: Policy, blocks: float, slow: bool) -> None:
    model, tokens = build("llama"), 600
    slack = int(blocks * block_bytes(tokens))
    cache = cache_with(model, policy, slack)
    held = Held(cache)
    cache.add_observer(held)
    for layer in model.model.layers:
        layer.register_forward_hook(held.sample)
    assert policy.cache_size is not None
    total = LAYERS * 2 * (policy.cache_size + 1) * PER_SLOT
    bookkeeping = LAYERS * 200
    with device(slow):
        forward(model, cache, prompt(tokens))
    # The running layer's block is its attention's, and comes on top: one full layer.
    assert max(held.pending) <= slack
    assert max(held.bytes) - max(held.pending) <= total + slack + bookkeeping
    assert max(held.bytes) <= total + 2 * slack + bookkeeping
    assert (max(held.pending) > 0) == (slow and blocks >= 1)  # a block that waits for the device
    assert held.bytes[-1] <= total + bookkeeping
    held.bytes.clear()
    with device(slow):
        forward(model, cache, prompt(tokens, 1))  # the old stores go as the new ones come
    assert max(held.bytes) <= 2 * (total + slack + bookkeeping)


def test_layers_that_are_trimmed_late_are_held_within_the_slack(llama: PreTrainedModel) -> None:
    most = {}
    for slack in (0, 5_000, HUGE):
        cache = cache_with(llama, Cake(**SMALL), slack, cascade_every=1)
        held = Held(cache)
        cache.add_observer(held)
        forward(llama, cache, prompt(LONG))
        most[slack] = max(held.bytes)
        assert not any(held.pending)
    total = LAYERS * 2 * 41 * PER_SLOT + LAYERS * 200
    assert most[0] <= total
    assert most[5_000] <= total + 5_000 < most[HUGE]


def test_order_of_events(llama: PreTrainedModel) -> None:
    heard = {}
    for slack, every in ((0, 2), (HUGE, 2), (HUGE, LAYERS)):
        cache = cache_with(llama, Cake(cache_size=24, window_size=WINDOW), slack, cascade_every=every)
        order = Order()
        cache.add_observer(order)
        forward(llama, cache, prompt(LONG))
        heard[slack, every] = order.events
    first, second = ([("scored", i), ("scored", i + 1)] for i in (0, 2))
    own = [("prefill", i) for i in range(LAYERS)]
    trims = [("cascade", 0), ("cascade", 1)]
    assert heard[0, 2] == heard[HUGE, 2] == [*first, *own[:2], *second, *trims, *own[2:]]
    assert heard[HUGE, LAYERS] == [*first, *second, *own]


def test_interrupted_prefill_lets_its_waiting_blocks_go(llama: PreTrainedModel) -> None:
    model = build("llama")
    cache = cache_with(model, Cake(**SMALL), HUGE, cascade_every=LAYERS)
    interrupted(model, cache)
    assert cache.num_bytes == cache.cascade.pending_bytes == 3 * block_bytes(LONG)
    # Beside keys and values: positions, scores, a few numbers; no query, no output.
    assert reachable_bytes(cache) <= cache.num_bytes + 3 * (LONG * 8 + 2 * LONG * 4 + 300)
    with pytest.raises(CacheStateError, match=r"reached 3 of 4 layers.*cache\.reset\(\)"):
        forward(model, cache, prompt(5))
    watched = [weakref.ref(entry.block.keys) for entry in cache.cascade.scored if entry.block]
    gc.collect()
    cache.reset()
    assert [reference() for reference in watched] == [None] * 3
    assert cache.num_bytes == reachable_bytes(cache) == 0
    assert cache.cascade.slack == HUGE
    assert torch.equal(
        forward(model, cache, prompt(LONG)), forward(llama, CompressedCache(llama, Cake(**SMALL)), prompt(LONG))
    )


def test_interrupted_second_turn_keeps_what_was_held(llama: PreTrainedModel) -> None:
    model = build("llama")
    cache = cache_with(model, Cake(**SMALL), HUGE, cascade_every=LAYERS)
    forward(model, cache, prompt(LONG))
    before, held = state(cache), cache.num_bytes
    interrupted(model, cache)
    assert cache.num_bytes == held + cache.cascade.pending_bytes > held
    stores = [tensor for layer in cache.compressed_layers if layer.store for tensor in layer.store.slots]
    assert len(stores) == 4 * LAYERS
    assert all(any(torch.equal(tensor, old) for old in before) for tensor in stores)


def test_a_prefill_that_breaks_off_in_its_last_layer_cannot_be_continued(llama: PreTrainedModel) -> None:
    class Breaks(Observer):
        def on_evict(self, event: EvictEvent) -> None:
            if event.layer_idx == LAYERS - 1:
                raise KeyboardInterrupt

    for slack in (0, HUGE):
        cache = cache_with(llama, Cake(cache_size=16, window_size=WINDOW), slack)
        cache.add_observer(Breaks())
        with pytest.raises(KeyboardInterrupt):
            forward(llama, cache, prompt(LONG))
        with pytest.raises(CacheStateError, match=r"reached 4 of 4 layers.*cache\.reset\(\)"):
            forward(llama, cache, prompt(1))
