"""Layers that share the keys of an earlier one attend to what that layer holds."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch

from kvcompress import AdaKV, Cake, CompressedCache, UnsupportedModelError, make_policy
from kvcompress.engine import attend as attend_module
from kvcompress.engine import cache as cache_module
from kvcompress.engine.attention import AttentionCall
from kvcompress.engine.layer import CompressedLayer
from kvcompress.engine.sharing import coming_positions, read_slots
from tests.kvcompress.engine.architectures import build, needs_sharing, shared_model
from tests.kvcompress.engine.helpers import LONG, MEDIUM, NO_EVICTION, SHORT, difference, forward, left_padded, prompt
from tests.kvcompress.engine.policies import SMALL

pytestmark = needs_sharing

NAMES = ["gemma4-sharing", "gemma3n"]


class Calls:
    """Notes each layer's call and the output of its attention."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.heard: list[tuple[int, AttentionCall, torch.Tensor]] = []
        attend = CompressedCache.attend

        def noting(cache: CompressedCache, layer: Any, call: AttentionCall) -> tuple[torch.Tensor, Any]:
            output, weights = attend(cache, layer, call)
            self.heard.append((int(call.module.layer_idx), call, output))  # type: ignore[arg-type]
            return output, weights

        monkeypatch.setattr(CompressedCache, "attend", noting)


def over_all(call: AttentionCall, cache: CompressedCache, owner: int, positions: torch.Tensor) -> torch.Tensor:
    """In float64, one query per row over what a layer attends to: ``[batch, 1, query_heads, value_dim]``."""
    store = cache.layer(owner).store
    assert store is not None
    keys, values = (store.dense(array, 0.0).double() for array in (store.slots.keys, store.slots.values))
    there = store.dense(positions, -1) >= 0
    batch, heads = keys.shape[:2]
    query = call.query.double().view(batch, heads, -1, keys.shape[-1])
    logits = (query @ keys.transpose(2, 3) * call.spec(None).scaling).masked_fill(~there[:, :, None], -torch.inf)
    return (logits.softmax(-1) @ values).view(batch, 1, -1, values.shape[-1])


@pytest.mark.parametrize("policy", ["cake", "adakv"])
@pytest.mark.parametrize("name", NAMES)
def test_a_decoded_token_attends_to_what_the_owner_keeps(
    name: str, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shared_model(name)
    made = Cake(**SMALL) if policy == "cake" else AdaKV(base=make_policy("snapkv", **SMALL, decode="accumulate"))
    cache = CompressedCache(model, made)
    ids, mask = left_padded([prompt(LONG), prompt(MEDIUM, 2), prompt(SHORT, 3)])
    forward(model, cache, ids, mask)
    held = cache.kept_positions(cache.compressed_layers[-1].layer_idx)
    calls, noted = Calls(monkeypatch), []

    def noting(layer: CompressedLayer) -> torch.Tensor:
        noted.append(coming_positions(layer))
        return noted[-1]

    monkeypatch.setattr(attend_module, "coming_positions", noting)
    token = torch.cat([prompt(1, 7), prompt(1, 8), prompt(1, 9)])
    forward(model, cache, token, torch.cat([mask, mask.new_ones(3, 1)], dim=1))
    own = {layer.layer_idx for layer in cache.compressed_layers}
    sharing = [(call, output) for index, call, output in calls.heard if index not in own]
    assert sharing
    store = cache.compressed_layers[-1].store
    assert store is not None
    for row, before in zip(store.dense(noted[-1], -1).flatten(0, 1), held.flatten(0, 1), strict=True):
        assert sorted(row[row >= 0].tolist()) == [*before[before >= 0].tolist(), LONG]
    for call, output in sharing:
        assert difference(output.double(), over_all(call, cache, max(own), noted[-1])) <= 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_a_continued_prompt_attends_to_what_was_held_and_the_new_block(name: str) -> None:
    model = shared_model(name)
    cache = CompressedCache(model, Cake(cache_size=400))
    blocks = [prompt(MEDIUM), prompt(20, 1), prompt(1, 2), prompt(9, 3)]
    for index, block in enumerate(blocks):
        found = forward(model, cache, block)
        with torch.no_grad():
            whole = model(torch.cat(blocks[: index + 1], dim=1), use_cache=False).logits
        assert difference(found, whole[:, -block.shape[1] :]) <= NO_EVICTION


def test_what_was_attended_goes_with_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The held and new keys of a continued prompt are a copy, which nothing may keep."""
    readers: list[weakref.ref[Any]] = []
    leave = cache_module.leave_reader

    def noting(key: torch.Tensor, reader: Any) -> None:
        readers.append(weakref.ref(reader))
        leave(key, reader)

    model = shared_model("gemma4-sharing")
    cache = CompressedCache(model, Cake(**SMALL))
    forward(model, cache, prompt(LONG))
    monkeypatch.setattr(cache_module, "leave_reader", noting)
    forward(model, cache, prompt(9, 1))
    assert readers
    assert [reader() for reader in readers] == [None] * len(readers)


def test_a_softcap_beside_shared_keys_is_refused() -> None:
    model = shared_model("gemma4-sharing")
    cache = CompressedCache(model, Cake(**SMALL))
    forward(model, cache, prompt(LONG))
    layer = cache.compressed_layers[-1]
    nothing = torch.zeros(1, 1, 1, 16)
    call = AttentionCall("sdpa", model, torch.zeros(1, 4, 1, 16), nothing, nothing, None, {})
    positions = coming_positions(layer)
    assert read_slots(layer, positions, call)[0].shape == (1, 1, 4, 16)
    with pytest.raises(UnsupportedModelError, match=r"shares keys and has a softcap .* Use DynamicCache"):
        read_slots(layer, positions, replace(call, options={"softcap": 2.0}))


def test_a_model_on_several_devices_is_refused() -> None:
    model = build("gemma4-sharing")
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    with pytest.raises(UnsupportedModelError, match=r"on one device only; got a model spread over 0, 1\. Load it with"):
        CompressedCache(model, Cake(**SMALL))
