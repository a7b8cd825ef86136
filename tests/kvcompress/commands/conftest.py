"""A tiny random model with the testbed's tokenizer."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import logging as hub_logging
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from kvcompress.bench.testbed.tasks import make_example
from kvcompress.bench.testbed.tokenizer import build_tokenizer

POSITIONS = 256
PROMPT_TOKENS = 128


def save_tiny(folder: Path) -> None:
    """Write a random Llama of two layers and the testbed's tokenizer."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=POSITIONS,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,  # so that texts have the length that a test asks for
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread: on a busy machine torch's thread pools make small models many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def logging_as_before() -> Iterator[None]:
    """Give other tests the logging that the commands silence."""
    verbosity, hub_verbosity = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    with_bars = transformers_logging.is_progress_bar_enabled()
    yield
    transformers_logging.set_verbosity(verbosity)
    hub_logging.set_verbosity(hub_verbosity)
    if with_bars:
        transformers_logging.enable_progress_bar()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the tiny model."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder)
    return folder


@pytest.fixture
def prompt_file(tmp_path: Path) -> Path:
    """Return a file with a prompt of `PROMPT_TOKENS` tokens."""
    path = tmp_path / "prompt.txt"
    path.write_text(make_example("needle_8", PROMPT_TOKENS).prompt + "\n", encoding="utf-8")
    return path
