"""How many heads a model's layers have, and of which size, by its config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvcompress.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class HeadShape:
    """The heads of one layer.

    Attributes:
        query_heads: query heads.
        kv_heads: key and value heads.
        head_dim: size of a query's and a key's head.
        value_dim: size of a value's head.
    """

    query_heads: int
    kv_heads: int
    head_dim: int
    value_dim: int


def head_shapes(config: Any) -> tuple[HeadShape, ...]:
    """The heads of every layer, which differ from layer to layer in some models (Gemma 4).

    Args:
        config: a decoder's config (of a vision-language model, its text part).

    Raises:
        UnsupportedModelError: the config names no attention heads.
    """
    return tuple(_head_shape(layer_config(config, index), index) for index in range(config.num_hidden_layers))


def layer_config(config: Any, index: int) -> Any:
    """What a config says of one layer: reading what differs between layers from the whole config raises."""
    layers = getattr(config, "per_layer_config", None)
    return config if layers is None else layers[index]


def _head_shape(config: Any, index: int) -> HeadShape:
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int) or heads == 0:
        raise UnsupportedModelError(
            f"compression needs a decoder with attention; the config of this model ({type(config).__name__}) names no "
            "attention heads. Run it without a compressed cache."
        )
    head_dim = _own_size(config, index) or config.hidden_size // heads
    return HeadShape(
        query_heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=head_dim,
        value_dim=getattr(config, "v_head_dim", None) or head_dim,
    )


def _own_size(config: Any, index: int) -> int | None:
    """The size of a head where the config names it."""
    types = getattr(config, "layer_types", None)
    if types is not None and types[index] == "full_attention":
        size = getattr(config, "global_head_dim", None)  # before configs could differ by layer
        if size is not None:
            return int(size)
    return getattr(config, "qk_head_dim", None) or getattr(config, "head_dim", None)
