"""Tiny random masked language models."""

from collections.abc import Callable, Iterator

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM, PreTrainedModel

from kvcompress.bench.workloads.diffusion_lm.architecture import build_model

VOCABULARY, POSITIONS = 19, 64


def modern_bert(layer_types: list[str]) -> PreTrainedModel:
    """A random ModernBERT; `sliding_attention` layers see 3 tokens to each side."""
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=len(layer_types),
        num_attention_heads=2,
        max_position_embeddings=POSITIONS,
        layer_types=layer_types,
        local_attention=6,
        initializer_range=0.5,  # so that attention is not even
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        cls_token_id=None,
        sep_token_id=None,
    )
    return ModernBertForMaskedLM(config).eval()


def bert() -> PreTrainedModel:
    """A random BERT: learned positions instead of rotary ones."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=POSITIONS,
        initializer_range=0.5,
    )
    return BertForMaskedLM(config).eval()


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": bert,
    "modern_bert": lambda: modern_bert(["full_attention"] * 2),
    "modern_bert_sliding": lambda: modern_bert(["full_attention", "sliding_attention"]),
}


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return MODELS[request.param]()


@pytest.fixture
def prompts() -> torch.Tensor:
    return torch.randint(2, VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def untrained() -> PreTrainedModel:
    """The architecture of the shipped model with random weights."""
    return build_model(0).eval()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread: on a busy machine torch's thread pools make small models many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
