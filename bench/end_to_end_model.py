"""Models with random weights and the shape of real ones, and what a decode step of them has to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A Llama's sizes, and what is generated with it.

    Attributes:
        name: a key of :data:`MODEL_SHAPES`.
        layers: decoder layers.
        hidden: width.
        intermediate: width of the feed-forward part.
        query_heads: query heads.
        kv_heads: key and value heads.
        head_dim: size of a head.
        vocabulary: tokens.
        dtype: of the weights.
        lengths: tokens of the prompts.
        batches: sequences at a time.
        cache_size: tokens that the compressed caches keep per layer.
        window: tokens at the end that they always keep.
        new_tokens: tokens generated.
        needs_gpu: whether it is too large for anything else.
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    query_heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    dtype: torch.dtype
    lengths: tuple[int, ...]
    batches: tuple[int, ...]
    cache_size: int
    window: int
    new_tokens: int
    needs_gpu: bool


_LLAMA: Final = ModelShape(
    name="llama-3.1-8b",
    layers=32,
    hidden=4096,
    intermediate=14336,
    query_heads=32,
    kv_heads=8,
    head_dim=128,
    vocabulary=128256,
    dtype=torch.bfloat16,
    lengths=(8192, 32768, 131072),
    batches=(1, 4),
    cache_size=1024,
    window=32,
    new_tokens=64,
    needs_gpu=True,
)
_TINY: Final = ModelShape(
    name="tiny",
    layers=2,
    hidden=64,
    intermediate=128,
    query_heads=4,
    kv_heads=2,
    head_dim=16,
    vocabulary=128,
    dtype=torch.float32,
    lengths=(96, 160),
    batches=(1, 2),
    cache_size=48,
    window=8,
    new_tokens=8,
    needs_gpu=False,
)
MODEL_SHAPES: Final[Mapping[str, ModelShape]] = MappingProxyType({shape.name: shape for shape in (_LLAMA, _TINY)})


def make_model(shape: ModelShape, device: torch.device) -> PreTrainedModel:
    """Makes the model; its weights are drawn on the device, nothing is loaded.

    Args:
        shape: its sizes.
        device: where it is made.
    """
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.query_heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=1 << 18,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        bos_token_id=None,
        eos_token_id=None,  # so that every text has the length that was asked for
        pad_token_id=None,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=shape.dtype, attn_implementation="sdpa")
    model.eval()
    return model


def flops(shape: ModelShape, tokens: int, batch: int) -> float:
    """Floating-point operations of a prefill: products with the weights, and causal attention."""
    heads = (shape.query_heads + 2 * shape.kv_heads) * shape.head_dim + shape.query_heads * shape.head_dim
    weights = shape.layers * shape.hidden * (heads + 3 * shape.intermediate)
    attention = shape.layers * tokens * shape.query_heads * shape.head_dim
    return 2.0 * batch * tokens * (weights + attention)


def step_bytes(model: PreTrainedModel, cache_bytes: int) -> int:
    """Bytes that a decode step reads at least: the weights once, but of the embedding a row, and the cache."""
    embedding: Any = model.get_input_embeddings()
    weights = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())
    return weights - int(embedding.weight.numel() * embedding.weight.itemsize) + cache_bytes
