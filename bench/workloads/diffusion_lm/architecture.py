"""The model that adds: a small ModernBERT, bidirectional, with rotary positions."""

from pathlib import Path
from typing import Final

import torch
from transformers import ModernBertConfig, ModernBertForMaskedLM

from kvcompress.bench.workloads.diffusion_lm.tokenizer import MAX_POSITIONS, build_tokenizer
from kvcompress.bench.workloads.diffusion_lm.vocabulary import PAD_ID, VOCABULARY_SIZE

LAYERS: Final = 4


def build_config() -> ModernBertConfig:
    """Return the configuration: 4 layers of global attention, width 128, 4 heads of dimension 32."""
    return ModernBertConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        layer_types=["full_attention"] * LAYERS,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
        },
        pad_token_id=PAD_ID,
        bos_token_id=None,
        eos_token_id=None,
        cls_token_id=None,
        sep_token_id=None,
        tie_word_embeddings=True,
    )


def build_model(seed: int) -> ModernBertForMaskedLM:
    """Return an untrained model in float32, in training mode.

    Args:
        seed: seed of torch's global generator, from which the weights are drawn.
    """
    torch.manual_seed(seed)
    model = ModernBertForMaskedLM(build_config())
    model.train()
    return model


def save_model(model: ModernBertForMaskedLM, folder: Path) -> None:
    """Write configuration, weights (rounded to float16) and tokenizer to a folder.

    Args:
        model: the model; it is left as it is.
        folder: made if it is not there.
    """
    half = ModernBertForMaskedLM(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
