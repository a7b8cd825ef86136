"""One layer of a compressed cache, driven as transformers drives it but without the rest of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from kvcompress import CompressedCache, Policy
from kvcompress.engine.attention import attention_forward

NO_ATTENTION: Final = "kvcompress_bench_no_attention"


def _no_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """Stands for the model's own attention where only the work of the engine counts: returns its input."""
    return query.transpose(1, 2), None


def small_model(query_heads: int = 32, kv_heads: int = 8, head_dim: int = 128, layers: int = 1) -> LlamaForCausalLM:
    """A Llama whose attention layers have the heads of a large model and whose other parts are tiny."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=query_heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=1 << 17,
    )
    model = LlamaForCausalLM(config)
    model.eval()
    return model


def attention_module(model: PreTrainedModel, layer_idx: int = 0) -> Any:
    """The attention module of a decoder's layer."""
    decoder: Any = model.get_decoder()
    return decoder.layers[layer_idx].self_attn


class LayerDriver:
    """Puts queries, keys and values through update and attention of a cache, past the model's projections.

    Args:
        model: whose layers the cache has.
        policy: the cache's policy.
    """

    def __init__(self, model: PreTrainedModel, policy: Policy) -> None:
        AttentionInterface.register(NO_ATTENTION, _no_attention)
        self.cache = CompressedCache(model, policy)
        # Looked up once: the model's own forward holds the module already when it calls its attention.
        self.modules = [attention_module(model, layer_idx) for layer_idx in range(len(self.cache.layers))]

    def block(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer_idx: int = 0) -> torch.Tensor:
        """Several tokens: compresses them; their attention among each other is left out.

        Args:
            query: ``[batch, query_heads, tokens, head_dim]``.
            key: ``[batch, kv_heads, tokens, head_dim]``.
            value: ``[batch, kv_heads, tokens, head_dim]``.
            layer_idx: which layer.

        Returns:
            ``[batch, tokens, query_heads, head_dim]``; of several tokens the query itself.
        """
        module = self.modules[layer_idx]
        keys, values = self.cache.update(key, value, layer_idx)
        output, _ = attention_forward(NO_ATTENTION, module, query, keys, values, None, scaling=module.scaling)
        return output

    def compress(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Compresses a prompt from nothing."""
        self.cache.reset()
        self.block(query, key, value)

    def stepper(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Callable[[], torch.Tensor]:
        """A function that decodes the given token once more each time."""
        return lambda: self.block(query, key, value)
