"""The testbed model's architecture: a small Llama with grouped queries."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kvcompress.bench.testbed.tokenizer import MAX_POSITIONS, build_tokenizer
from kvcompress.bench.testbed.vocabulary import BOS_ID, EOS_ID, PAD_ID, VOCABULARY_SIZE


def build_config() -> LlamaConfig:
    """Return the configuration: 6 layers, width 192, 4 query and 2 kv heads of dimension 64."""
    return LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        tie_word_embeddings=False,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )


def build_model(seed: int) -> LlamaForCausalLM:
    """Return an untrained model in float32.

    Args:
        seed: seed of torch's global generator, from which the weights are drawn.

    Returns:
        The model, in training mode.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(build_config())
    model.train()
    return model


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Write configuration, weights and tokenizer to a folder.

    Weights are rounded to float16, whose rounding error is an eighth of bfloat16's.

    Args:
        model: the model; it is left as it is.
        folder: made if it is not there.
    """
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
