"""Hybrid models: layers that are not compressed are left alone."""

from typing import Any

import pytest
import torch

from kvcompress import CacheStateError, Cake, CompressedCache, Full
from kvcompress.engine.linear_states import linear_states
from tests.kvcompress.engine.architectures import build, shared_model
from tests.kvcompress.engine.helpers import (
    LONG,
    difference,
    forward,
    full_cache,
    greedy,
    kept,
    prompt,
)
from tests.kvcompress.engine.policies import SMALL


@pytest.mark.parametrize("name", ["gemma3", "gemma4", "gpt-oss", "qwen3-next", "nemotron-h"])
def test_other_layers_keep_what_transformers_keeps(name: str) -> None:
    model = shared_model(name)
    cache, full = CompressedCache(model, Cake(**SMALL)), full_cache(model)
    for held in (cache, full):
        greedy(model, held, prompt(LONG))
    compressed = {layer.layer_idx for layer in cache.compressed_layers}
    assert compressed == {1, 3}
    for index, (ours, theirs) in enumerate(zip(cache.layers, full.layers, strict=True)):
        if index not in compressed:
            assert type(ours) is type(theirs)
    # The first layer comes before any compressed one, and the tokens of the prompt are the same.
    first, expected = CompressedCache(model, Cake(**SMALL)), full_cache(model)
    forward(model, first, prompt(LONG))
    forward(model, expected, prompt(LONG))
    for ours, theirs in zip(_states(first.layers[0]), _states(expected.layers[0]), strict=True):
        assert difference(ours, theirs) <= 1e-6
    assert len(kept(first, 1)[0]) < LONG


def _states(layer: Any) -> list[torch.Tensor]:
    return linear_states(layer) or [layer.keys, layer.values]


def test_a_layer_with_both_keeps_the_states_and_compresses_the_keys() -> None:
    model = shared_model("falcon-h1")
    cache, full = CompressedCache(model, Cake(**SMALL)), full_cache(model)
    for held in (cache, full):
        forward(model, held, prompt(LONG))
    states, expected = linear_states(cache.layers[0]), linear_states(full.layers[0])  # before anything is evicted
    assert len(states) == 2
    for ours, theirs in zip(states, expected, strict=True):
        assert difference(ours, theirs) <= 1e-6
    assert cache.report().full_bytes == sum(
        tensor.nbytes for layer in full.layers for tensor in (layer.keys, layer.values, *linear_states(layer))
    )
    assert cache.num_bytes >= sum(tensor.nbytes for layer in cache.layers for tensor in linear_states(layer))
    for index in range(4):
        assert len(kept(cache, index)[0]) < LONG


def test_a_state_of_all_tokens_cannot_be_cropped() -> None:
    model = shared_model("falcon-h1")
    cache = CompressedCache(model, Full())
    forward(model, cache, prompt(LONG))
    assert not cache.layers[0].is_croppable
    with pytest.raises(CacheStateError, match=r"layer 0 keeps a linear-attention state .* without an assistant"):
        cache.crop(-1)


_IMAGE: dict[str, Any] = {
    "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long),
    "aspect_ratio_mask": torch.tensor([[[1, 0]]]),
    "cross_attention_mask": torch.ones(1, LONG, 1, 2, dtype=torch.long),
}


@pytest.mark.filterwarnings("ignore:.hidden_state. is deprecated:FutureWarning")  # transformers 5.17 of its own
def test_layers_that_attend_to_an_image_keep_all_of_it() -> None:
    model = build("mllama-vision-language")
    ids = prompt(LONG)
    ids[0, 3] = model.config.image_token_index
    image = _IMAGE | {"pixel_values": torch.randn(1, 1, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    expected, large, small = (
        (greedy(model, cache, ids, **image), cache)
        for cache in (full_cache(model), CompressedCache(model, Full()), CompressedCache(model, Cake(**SMALL)))
    )
    torch.testing.assert_close(large[0], expected[0])
    assert not torch.equal(greedy(model, full_cache(model), ids), expected[0])  # the image matters
    assert torch.equal(small[1].layers[1].keys, large[1].layers[1].keys)
    assert torch.equal(large[1].layers[1].keys, expected[1].layers[1].keys)
    assert [layer.layer_idx for layer in small[1].compressed_layers] == [0, 2, 3]
    assert all(len(kept(small[1], index)[0]) < LONG for index in (0, 2, 3))
