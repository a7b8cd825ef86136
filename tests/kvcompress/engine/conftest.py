"""Tiny models run fastest on one thread."""

from collections.abc import Iterator

import pytest
import torch
from transformers import PreTrainedModel

from tests.kvcompress.engine.architectures import shared_model


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["llama", "gemma3", "mistral-sliding"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return shared_model(request.param)


@pytest.fixture
def llama() -> PreTrainedModel:
    return shared_model("llama")
