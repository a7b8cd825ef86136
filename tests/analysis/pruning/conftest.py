"""A small random model in float64, and texts for it."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT, STEPS = 24, 12


@pytest.fixture(scope="session")
def model() -> LlamaForCausalLM:
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


@pytest.fixture(scope="session")
def windows() -> torch.Tensor:
    return torch.randint(50, (2, CONTEXT + STEPS + 1), generator=torch.Generator().manual_seed(1))
