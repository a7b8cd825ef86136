"""Hybrid models: layers that are not compressed are left alone."""

from typing import Any

import pytest
import torch

from kvcompress import (
    Cake,
    CompressedCache,
)
from tests.kvcompress.engine.architectures import shared_model
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


@pytest.mark.parametrize("name", ["gemma3", "gpt-oss", "qwen3-next"])
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
    if hasattr(layer, "keys"):
        return [layer.keys, layer.values]
    return [*layer.conv_states.values(), *layer.recurrent_states.values()]
