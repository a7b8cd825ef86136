"""What the tests of Algorithm Distillation share: one thread, and a small random agent."""

from collections.abc import Iterator

import pytest
import torch
from transformers import LlamaForCausalLM

from kvcompress.bench.workloads.algorithm_distillation.architecture import build_model, plain_model
from kvcompress.bench.workloads.algorithm_distillation.location import load_agent


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread: on a busy machine torch's thread pools make small models many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def untrained() -> LlamaForCausalLM:
    """Return an agent with random weights, large enough that its choices depend on its history."""
    model = plain_model(build_model(0))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    return model


@pytest.fixture(scope="session")
def trained() -> LlamaForCausalLM:
    """Return the shipped agent."""
    return load_agent()
