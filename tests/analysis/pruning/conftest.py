"""A small random model in float64, and texts for it."""

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.analysis.small_model import small_model

CONTEXT, STEPS = 24, 12


@pytest.fixture(scope="session")
def model() -> LlamaForCausalLM:
    return small_model()


@pytest.fixture(scope="session")
def windows() -> torch.Tensor:
    return torch.randint(50, (2, CONTEXT + STEPS + 1), generator=torch.Generator().manual_seed(1))
