"""Listeners hear every attention of attached models; observers are told which keys took part."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache

from kvcompress import Cake, CompressedCache, DecodeEvent, Observer, PrefillEvent, attach
from kvcompress.engine.attention import AttentionCall
from kvcompress.engine.listening import add_listener, remove_listener
from tests.kvcompress.engine.architectures import SLIDING_WINDOW, build, shared_model
from tests.kvcompress.engine.helpers import forward, prompt
from tests.kvcompress.engine.policies import PLAIN_POLICIES, SMALL


class Ears:
    """Notes what it hears."""

    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []
        self.caches: list[CompressedCache] = []

    def on_attention(self, call: AttentionCall) -> None:
        self.calls.append(call)

    def on_compressed(self, cache: CompressedCache, module: torch.nn.Module) -> None:
        self.caches.append(cache)


class Events(Observer):
    """Notes copies of the events of one layer."""

    def __init__(self, layer_idx: int) -> None:
        self.layer_idx = layer_idx
        self.prefills: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.decodes: list[tuple[torch.Tensor, ...]] = []

    def on_prefill(self, event: PrefillEvent) -> None:
        if event.layer_idx == self.layer_idx:
            self.prefills.append((event.keys.clone(), event.positions.clone(), event.attended.clone()))

    def on_decode(self, event: DecodeEvent) -> None:
        if event.layer_idx == self.layer_idx:
            held = (event.query, event.keys, event.values, event.positions, event.probability)
            self.decodes.append(tuple(tensor.clone() for tensor in held))


def test_a_listener_hears_plain_caches_whole_and_compressed_ones_by_their_cache() -> None:
    model, ears = attach(build("llama")), Ears()
    add_listener(ears)
    try:
        cache = DynamicCache(config=model.config)
        forward(model, cache, prompt(9))
        forward(model, cache, prompt(1))
        assert [tuple(call.key.shape) for call in ears.calls] == [(1, 2, 9, 8)] * 4 + [(1, 2, 10, 8)] * 4
        compressed = CompressedCache(model, Cake(**SMALL))
        forward(model, compressed, prompt(9))
        assert len(ears.calls) == 8
        assert ears.caches == [compressed] * 4
    finally:
        remove_listener(ears)
    forward(model, None, prompt(5))
    assert len(ears.calls) == 8
    remove_listener(ears)  # a second time is no error


def test_the_attention_of_a_decoded_token_follows_from_the_events_keys() -> None:
    model = shared_model("llama")
    cache = CompressedCache(model, PLAIN_POLICIES["cake"])
    events = Events(1)
    cache.add_observer(events)
    forward(model, cache, prompt(60))
    for step in range(4):
        forward(model, cache, prompt(1, seed=step))
    assert len(events.decodes) == 4
    for query, keys, values, positions, probability in events.decodes:
        assert values.shape == keys.shape
        logits = query[0].unflatten(0, (2, 2)) @ keys[0, :, None].transpose(-1, -2) * query.shape[-1] ** -0.5
        logits = logits.masked_fill(positions[0, :, None, None] < 0, float("-inf"))
        torch.testing.assert_close(logits.softmax(-1).mean((1, 2)), probability[0], atol=1e-6, rtol=1e-5)


def test_a_sliding_layer_tells_which_keys_its_block_attended_to() -> None:
    model = shared_model("mistral-sliding")
    cache = CompressedCache(model, PLAIN_POLICIES["full"])
    events: Any = Events(0)
    cache.add_observer(events)
    forward(model, cache, prompt(60))
    forward(model, cache, prompt(9, seed=1))
    (_, positions, attended), (_, later_positions, later_attended) = events.prefills
    assert attended[0, 0].tolist() == list(range(60))
    assert positions[0, 0].tolist() == [-1] * (60 - SLIDING_WINDOW) + list(range(60 - SLIDING_WINDOW, 60))
    assert set(later_positions[0, 0].tolist()) - {-1} == set(range(69 - SLIDING_WINDOW, 69))
    first = 60 - SLIDING_WINDOW + 1  # the oldest key that the block's first query sees, position 60
    assert set(range(first, 69)) <= set(later_attended[0, 0].tolist())
