"""Heads of a model's layers by its config: what its attention really gets."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers

from kvcompress import Cake, CompressedCache, UnsupportedModelError, attach
from kvcompress.engine.attach import text_config
from kvcompress.engine.attention import AttentionCall
from kvcompress.engine.head_shapes import HeadShape, head_shapes
from kvcompress.engine.listening import add_listener, remove_listener
from tests.kvcompress.engine.architectures import ARCHITECTURES, build
from tests.kvcompress.engine.helpers import forward, full_cache, prompt
from tests.kvcompress.engine.policies import SMALL


class Shapes:
    """Notes the heads that each layer attends with."""

    def __init__(self) -> None:
        self.of_layer: dict[int, HeadShape] = {}

    def on_attention(self, call: AttentionCall) -> None:
        query, key, value = call.query, call.key, call.value
        self.of_layer[int(call.module.layer_idx)] = HeadShape(  # type: ignore[arg-type]
            query.shape[1], key.shape[1], key.shape[-1], value.shape[-1]
        )

    def on_compressed(self, cache: CompressedCache, module: torch.nn.Module) -> None:
        raise AssertionError("the cache is not a compressed one")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shapes_are_those_that_the_layers_attend_with(name: str) -> None:
    model, heard = attach(build(name)), Shapes()
    add_listener(heard)
    try:
        forward(model, full_cache(model), prompt(9))
    finally:
        remove_listener(heard)
    shapes = head_shapes(text_config(model))
    assert len(shapes) == model.config.get_text_config().num_hidden_layers
    assert heard.of_layer
    assert {index: shapes[index] for index in heard.of_layer} == heard.of_layer


def test_a_config_of_before_layers_could_differ_names_the_size_of_full_layers_apart() -> None:
    config = SimpleNamespace(
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        global_head_dim=16,
    )
    assert [shape.head_dim for shape in head_shapes(config)] == [8, 16]


def test_a_model_without_attention_is_refused() -> None:
    config = transformers.RwkvConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, context_length=64)
    model = transformers.RwkvForCausalLM._from_config(config)
    with pytest.raises(UnsupportedModelError, match=r"RwkvConfig\) names no attention heads\. Run it without"):
        CompressedCache(model, Cake(**SMALL))
