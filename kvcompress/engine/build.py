"""Builds the layers of a cache from a model's config."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import PreTrainedModel, cache_utils
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
)

from kvcompress.engine.attach import devices_of, text_config
from kvcompress.engine.head_shapes import head_shapes
from kvcompress.engine.layer import CompressedLayer
from kvcompress.engine.linear_states import keeps_no_keys
from kvcompress.engine.sharing import shares_keys
from kvcompress.engine.stateful_layer import StatefulCompressedLayer
from kvcompress.errors import UnsupportedModelError

_FULL = (DynamicLayer, LinearAttentionAndFullAttentionLayer)


def build_layers(model: PreTrainedModel, *, compress_sliding: bool | None, static: bool) -> list[Any]:
    """One layer per layer of the model: compressed where it attends to all tokens, else transformers' own.

    Args:
        model: the model.
        compress_sliding: whether sliding-window layers are compressed too; None: only where there are no others. Layers
            that attend within chunks never are.
        static: see :class:`CompressedLayer`.

    Raises:
        UnsupportedModelError: an encoder-decoder model, shared keys on several devices, or a kind of layer that cannot
            be compressed.
    """
    config = text_config(model)
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"compression supports decoders only; got the encoder-decoder model {name}. Use EncoderDecoderCache."
        )
    if shares_keys(config):
        _check_sharing(model)
    layers = list(DynamicCache(config=config).layers)
    if len(layers) < config.num_hidden_layers:  # older transformers create plain layers only when they are needed
        layers += [DynamicLayer() for _ in range(config.num_hidden_layers - len(layers))]
    if compress_sliding is None:
        compress_sliding = not any(type(layer) in _FULL for layer in layers)
    crossing = set(getattr(config, "cross_attention_layers", None) or ())  # attend to an image (Mllama), not to tokens
    built = [
        layer if i in crossing else _build(i, layer, name, compress_sliding and not _is_chunked(config, i), static)
        for i, layer in enumerate(layers)
    ]
    if not any(isinstance(layer, CompressedLayer) for layer in built):
        raise UnsupportedModelError(
            f"no layer of {name} would be compressed: all are sliding-window, chunked or linear ones. Pass "
            "compress_sliding=True to compress sliding-window layers, or use DynamicCache."
        )
    return built


def largest_head_dim(model: PreTrainedModel, layers: list[Any]) -> int:
    """The largest size of a head, of keys or values, in any of a cache's layers that is compressed."""
    shapes = head_shapes(text_config(model))
    compressed = [shapes[layer.layer_idx] for layer in layers if isinstance(layer, CompressedLayer)]
    return max(max(shape.head_dim, shape.value_dim) for shape in compressed)


def _check_sharing(model: PreTrainedModel) -> None:
    """Checks that layers are handed the very keys that another layer was given: a copy would not lead to the cache.

    Older transformers copies them to the layer's device, which under ``torch.compile`` gives another tensor on the same
    one, too.
    """
    name = type(model).__name__
    if not hasattr(cache_utils, "KVSharingDict"):
        raise UnsupportedModelError(
            f"{name} shares keys between layers, which compression supports from transformers 5.23 on; got "
            f"{transformers.__version__}. Install a newer one, or use DynamicCache for this model."
        )
    places = devices_of(model)
    if len(places) > 1:
        raise UnsupportedModelError(
            f"{name} shares keys between layers, and compression supports that on one device only; got a model spread "
            f"over {', '.join(places)}. Load it with device_map={{'': 0}}, or use DynamicCache."
        )


def _build(index: int, layer: Any, model: str, compress_sliding: bool, static: bool) -> Any:
    if type(layer) is DynamicLayer:
        return CompressedLayer(index, None, static)
    if type(layer) is LinearAttentionAndFullAttentionLayer:
        return StatefulCompressedLayer(index, static, getattr(layer, "number_of_states", None))
    if type(layer) is DynamicSlidingWindowLayer:
        return CompressedLayer(index, layer.sliding_window, static) if compress_sliding else layer
    if keeps_no_keys(layer):
        return layer
    raise UnsupportedModelError(
        f"layer {index} of {model} keeps a {type(layer).__name__}, which compression does not support. Use "
        "DynamicCache for this model."
    )


def _is_chunked(config: Any, index: int) -> bool:
    """Whether a layer attends within chunks (Llama 4): transformers caches it as sliding, but masks it otherwise."""
    types = getattr(config, "layer_types", None)
    if types is None:
        return getattr(config, "attention_chunk_size", None) is not None
    return bool(types[index] == "chunked_attention")
