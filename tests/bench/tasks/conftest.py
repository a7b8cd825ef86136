"""Tokenizers that know no English, a tiny model, and the embedded one."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kvcompress.bench.testbed.location import load_testbed
from tests.bench.tasks.tokenizers_made import byte_tokenizer, word_tokenizer


@pytest.fixture(scope="session")
def embedded() -> Any:
    """The embedded model and its tokenizer."""
    return load_testbed()


@pytest.fixture(scope="session", name="byte_tokenizer")
def make_byte_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="session", name="word_tokenizer")
def make_word_tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()


@pytest.fixture(scope="session")
def byte_model() -> LlamaForCausalLM:
    """A tiny model of random weights for the byte tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.4,  # so that every token counts for what comes next
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()
