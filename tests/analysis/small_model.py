"""A small random model in float64, for comparisons with independent computations."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def small_model() -> LlamaForCausalLM:
    """Three layers, 4 query and 2 kv heads of 8 dimensions, 50 tokens; the same weights each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,  # so that attention is far from even and predictions from flat
    )
    return LlamaForCausalLM(config).double().eval()
