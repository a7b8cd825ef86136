"""Tiny random models of many architectures, seeded, in float32 and evaluation mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel, cache_utils

VOCABULARY = 97
SLIDING_WINDOW = 24  # shorter than the tests' long prompts
_LAYERS = 4

# What most configs call the same. Weights are drawn anew (see `_randomise`), so that attention is far from uniform.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_HYBRID = ["sliding_attention", "full_attention"] * (_LAYERS // 2)


_ABSENT: Any = object()

needs_sharing = pytest.mark.skipif(
    not hasattr(cache_utils, "KVSharingDict"),
    reason="this version of transformers copies the keys that layers share, and the engine says so",
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to build one tiny model.

    Attributes:
        family: prefix of the names of transformers' config and model classes.
        changes: config arguments besides the common sizes; `_ABSENT` removes a common one that the config lacks.
        attention: attention implementation.
        hybrid: whether sliding-window layers stand beside full ones.
        sliding: whether any layer has a sliding window.
        linear: whether linear-attention layers stand beside full ones.
        model: name of the model class.
    """

    family: str
    changes: dict[str, Any] = field(default_factory=dict)
    attention: str = "sdpa"
    hybrid: bool = False
    sliding: bool = False
    linear: bool = False
    model: str | None = None

    def config(self) -> Any:
        """The tiny config."""
        return tiny_config(self.family, **self.changes)


_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_GEMMA = {"head_dim": 8, "num_key_value_heads": 1}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
_PLAIN_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_HYBRID_WINDOW = {"layer_types": _HYBRID, "sliding_window": SLIDING_WINDOW}


def _gemma4(shared: int) -> Architecture:
    changes = {
        "global_head_dim": 16,
        "num_kv_shared_layers": shared,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
    }
    return Architecture(
        "Gemma4Text", _GEMMA | _HYBRID_WINDOW | changes, hybrid=True, sliding=True, model="Gemma4ForCausalLM"
    )


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("Llama"),
    "llama-eager": Architecture("Llama", {"attention_bias": True}, attention="eager"),
    "llama-mha": Architecture("Llama", {"num_key_value_heads": 4, "head_dim": 6}),
    "qwen2": Architecture("Qwen2"),
    "qwen3": Architecture("Qwen3", {"head_dim": 8}),
    "mistral": Architecture("Mistral", {"sliding_window": None}),
    "mistral-sliding": Architecture("Mistral", {"sliding_window": SLIDING_WINDOW}, sliding=True),
    "mistral-sliding-eager": Architecture(
        "Mistral", {"sliding_window": SLIDING_WINDOW}, attention="eager", sliding=True
    ),
    "phi": Architecture("Phi"),
    "phi3": Architecture("Phi3", {"sliding_window": None}),
    "gemma": Architecture("Gemma", _GEMMA),
    "gemma2": Architecture(
        "Gemma2",
        _GEMMA
        | _HYBRID_WINDOW
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8},
        attention="eager",
        hybrid=True,
        sliding=True,
    ),
    "gemma3": Architecture(
        "Gemma3Text",
        _GEMMA | _HYBRID_WINDOW | {"query_pre_attn_scalar": 8},
        hybrid=True,
        sliding=True,
        model="Gemma3ForCausalLM",
    ),
    "olmo2": Architecture("Olmo2"),
    "granite": Architecture("Granite", {"attention_multiplier": 0.4, "logits_scaling": 2.0}),
    "stablelm": Architecture("StableLm", {"use_parallel_residual": True}),
    "starcoder2": Architecture("Starcoder2", {"sliding_window": None}),
    "gpt-neox": Architecture("GPTNeoX", {"num_key_value_heads": _ABSENT}),
    "mixtral": Architecture("Mixtral", _MOE | {"num_local_experts": 4, "sliding_window": None}),
    "qwen3-moe": Architecture("Qwen3Moe", _MOE | {"num_experts": 4, "head_dim": 8}),
    "gpt-oss": Architecture(
        "GptOss",
        _HYBRID_WINDOW
        | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": _PLAIN_ROPE},
        attention="eager",
        hybrid=True,
        sliding=True,
    ),
    "cohere": Architecture("Cohere", {"logit_scale": 1.0}),
    "cohere2": Architecture("Cohere2", _HYBRID_WINDOW | {"logit_scale": 1.0}, hybrid=True, sliding=True),
    "glm4": Architecture("Glm4", {"head_dim": 8}),
    "smollm3": Architecture("SmolLM3"),
    "exaone4": Architecture("Exaone4", _HYBRID_WINDOW, hybrid=True, sliding=True),
    "gemma3-vision-language": Architecture("Gemma3", hybrid=True, sliding=True),
    "qwen2.5-vl": Architecture("Qwen2_5_VL"),
    "llava": Architecture("Llava"),
    "mllama-vision-language": Architecture("Mllama"),
    "qwen3-next": Architecture(
        "Qwen3Next",
        _MOE
        | {
            "num_experts": 4,
            "shared_expert_intermediate_size": 24,
            "head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        linear=True,
    ),
    # Heads of another size in every full layer.
    "gemma4": _gemma4(shared=0),
    # The last two layers attend to the keys of the first two.
    "gemma4-sharing": _gemma4(shared=2),
    "gemma3n": Architecture(
        "Gemma3nText",
        {
            "head_dim": 8,
            "num_hidden_layers": 6,
            "num_kv_shared_layers": 2,
            "sliding_window": SLIDING_WINDOW,
            "vocab_size_per_layer_input": VOCABULARY,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
            "hidden_size_per_layer_input": 8,
            "intermediate_size": [48] * 6,
            "activation_sparsity_pattern": None,
            "laurel_rank": 4,
            "altup_num_inputs": 2,
        },
        hybrid=True,
        sliding=True,
        model="Gemma3nForCausalLM",
    ),
    # Attention and linear attention in every layer.
    "falcon-h1": Architecture(
        "FalconH1", _MAMBA | {"mamba_d_ssm": 64, "head_dim": 8, "mamba_chunk_size": 16}, linear=True
    ),
    # Layers with nothing but a feed-forward network.
    "nemotron-h": Architecture(
        "NemotronH",
        {
            "num_hidden_layers": _ABSENT,
            "layers_block_type": ["mamba", "attention", "mlp", "attention"],
            "head_dim": 8,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "n_groups": 1,
            "ssm_state_size": 8,
            "chunk_size": 16,
        },
        linear=True,
    ),
    # Layers that attend to an image, skipped without one.
    "mllama": Architecture("MllamaText", {"cross_attention_layers": [1]}, model="MllamaForCausalLM"),
}


def tiny_config(family: str, **changes: Any) -> Any:
    """The config of a family in the common small sizes, with changes."""
    values = {key: value for key, value in (_SIZES | changes).items() if value is not _ABSENT}
    return getattr(transformers, f"{family}Config")(**values)


def build(name: str) -> PreTrainedModel:
    """Returns a new model; the same name gives the same weights."""
    architecture = ARCHITECTURES[name]
    composite = _COMPOSITE.get(name)
    model_class, config = composite() if composite else _causal(architecture)
    return randomised(model_class._from_config(config, attn_implementation=architecture.attention))


def randomised(model: Any) -> Any:
    """Draws all matrices from N(0, 0.2²) with a fixed seed: attention logits then have a spread of order one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.ndim >= 2 or name.endswith(("sinks", "_gate")):  # Mllama's gates start shut
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def _causal(architecture: Architecture) -> tuple[Any, Any]:
    name = architecture.model or f"{architecture.family}ForCausalLM"
    return getattr(transformers, name), architecture.config()


def _gemma3_vision_language() -> tuple[Any, Any]:
    text = ARCHITECTURES["gemma3"].config().to_dict()
    vision = _vision("Siglip").to_dict()
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return transformers.Gemma3ForConditionalGeneration, config


def _llava() -> tuple[Any, Any]:
    text = ARCHITECTURES["llama"].config()
    config = transformers.LlavaConfig(text_config=text, vision_config=_vision("CLIPVision"), image_token_index=96)
    return transformers.LlavaForConditionalGeneration, config


def _vision(family: str) -> Any:
    name = "SiglipVisionConfig" if family == "Siglip" else f"{family}Config"
    return getattr(transformers, name)(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )


def _qwen25_vl() -> tuple[Any, Any]:
    text = dict(_SIZES, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]})
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32,
        "fullatt_block_indexes": [0], "patch_size": 8,
    }  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=90, video_token_id=91, vision_start_token_id=92,
        vision_end_token_id=93,
    )  # fmt: skip
    return transformers.Qwen2_5_VLForConditionalGeneration, config


def _mllama() -> tuple[Any, Any]:
    text = ARCHITECTURES["mllama"].config().to_dict()
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_global_layers": 1,
        "attention_heads": 2, "image_size": 16, "patch_size": 8, "vision_output_dim": 32, "max_num_tiles": 2,
        "intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }  # fmt: skip
    config = transformers.MllamaConfig(text_config=text, vision_config=vision, image_token_index=96)
    return transformers.MllamaForConditionalGeneration, config


_COMPOSITE: dict[str, Callable[[], tuple[Any, Any]]] = {
    "gemma3-vision-language": _gemma3_vision_language,
    "llava": _llava,
    "mllama-vision-language": _mllama,
    "qwen2.5-vl": _qwen25_vl,
}


def architecture_marks(name: str) -> list[Any]:
    """What keeps the tests of an architecture's compression from running here."""
    return [needs_sharing] if ARCHITECTURES[name].changes.get("num_kv_shared_layers") else []


def shared_model(name: str) -> PreTrainedModel:
    """A model shared by the tests of one process, which must leave it as they found it."""
    model = _built(name)
    for module in model.modules():  # `generate` leaves the last batch's positions on Qwen2.5-VL
        if getattr(module, "rope_deltas", None) is not None:
            module.rope_deltas = None
    return model


@cache
def _built(name: str) -> PreTrainedModel:
    return build(name)
