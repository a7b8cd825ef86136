"""Tiny random models of every decoder that transformers has, by shrinking its default config."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from types import MappingProxyType
from typing import Any, Final

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

VOCABULARY: Final = 97
LAYERS: Final = 4
WINDOW: Final = 24  # of sliding-window layers
_MOST_PARAMETERS: Final = 100_000_000
_GREATEST_DEVIATION: Final = 0.5
_ABSENT: Final = object()  # an argument that is left to the config


def _all(value: Any, *names: str) -> dict[str, Any]:
    return dict.fromkeys(names, value)


# What configs call their sizes. Only names that a config has are set.
_SIZES: Final[Mapping[str, Any]] = MappingProxyType(
    _all(32, "hidden_size", "n_embd", "d_model", "dim", "n_embed", "word_embed_proj_dim", "lru_width", "embedding_size")
    | _all(48, "intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size")
    | _all(48, "encoder_ffn_dim", "decoder_ffn_dim")
    | _all(LAYERS, "num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")
    | _all(4, "num_attention_heads", "n_head", "num_heads", "n_heads", "decoder_attention_heads")
    | _all(4, "encoder_attention_heads")
    | _all(2, "num_key_value_heads", "n_kv_heads", "num_kv_heads")
    | _all(VOCABULARY, "vocab_size", "vocab_size_per_layer_input")
    | _all(512, "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "index_topk")
    | _all(4, "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    | _all(2, "num_experts_per_tok", "moe_k", "moe_topk", "altup_num_inputs")
    | _all(24, "moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_size")
    | _all(8, "head_dim", "global_head_dim", "hidden_size_per_layer_input", "laurel_rank")
    | _all(8, "linear_key_head_dim", "linear_value_head_dim")
    | _all(2, "linear_num_key_heads", "linear_num_value_heads")
    | _all(8, "qk_nope_head_dim", "v_head_dim", "index_head_dim", "mamba_d_state")
    | _all(4, "qk_rope_head_dim", "rotary_dim")
    | _all(16, "q_lora_rank", "kv_lora_rank", "chunk_size", "attention_chunk_size")
    | _all(WINDOW, "sliding_window", "attention_window", "attention_window_size")
    | _all(4, "mamba_n_heads", "mamba_num_heads")
    | _all(16, "mamba_d_head", "mamba_head_dim")
    | _all(1, "mamba_n_groups", "n_groups", "n_group", "topk_group", "encoder_layers", "first_k_dense_replace")
    | _all(1, "n_shared_experts")
    | _all(2, "index_n_heads")
    | _all(0, "mtp_num_layers", "num_nextn_predict_layers")
    | _all(2, "num_kv_shared_layers")
    | {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
)
_LAYER_LISTS: Final = ("layer_types", "layers_block_type", "mlp_layer_types", "block_types")

# Sizes that follow from others in ways of their own.
_SPECIAL: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "bamba": {"attn_layer_indices": [1, 3]},
        "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64},
        "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
        "granitemoehybrid": {"layers_block_type": ["linear_attention", "full_attention"] * 2},
        "jamba": {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_dt_rank": 8,
        },
        "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"] * 2},
        "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"] * 2, "index_n_heads": 4},
        "zaya": {"num_experts_per_tok": 1},
    }
)

# Rotary positions along time, height and width; configs do not shrink its sections with the head.
_THREE_AXES: Final = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}

# What is tried in turn, until a model can be built and run.
_ATTEMPTS: Final[tuple[Mapping[str, Any], ...]] = (
    {},
    {"num_key_value_heads": 4},
    {"head_dim": 16},
    {"head_dim": _ABSENT},
    {"layer_types": _ABSENT},
    {"layer_types": _ABSENT, "head_dim": _ABSENT},
    {"num_key_value_heads": 4, "head_dim": _ABSENT},
    {"num_key_value_heads": 4, "head_dim": 12},
    {"num_attention_heads": 2, "num_key_value_heads": 2},
    {"rope_parameters": _THREE_AXES},
    {"rope_parameters": _THREE_AXES, "num_key_value_heads": 4},
)


class NotBuilt(Exception):
    """No tiny model of this kind could be built and run with transformers' own cache."""


def model_types() -> dict[str, bool]:
    """Every kind of decoder that transformers knows, and whether it is one that also sees images."""
    seeing = set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) - set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    names = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *seeing})
    return {name: name in seeing for name in names if name in CONFIG_MAPPING}


def tiny_model(model_type: str, *, seeing: bool) -> PreTrainedModel:
    """A tiny model with random weights, in float32 and evaluation mode, that can run.

    Args:
        model_type: key of transformers' registry of configs.
        seeing: whether it is made by ``AutoModelForImageTextToText`` instead of ``AutoModelForCausalLM``.

    Raises:
        NotBuilt: none of the shrunk configs could be built and run.
    """
    reasons = []
    for changes in _ATTEMPTS:
        try:
            model = _built(model_type, changes, seeing)
            with torch.no_grad():
                model(input_ids=torch.full((1, 5), 7))
            return model
        except Exception as error:
            reasons.append(f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])
    raise NotBuilt(" | ".join(dict.fromkeys(reasons)))


def _built(model_type: str, changes: Mapping[str, Any], seeing: bool) -> PreTrainedModel:
    config_class = CONFIG_MAPPING[model_type]
    config = config_class(**_arguments(config_class, changes))
    for each in (config, config.get_text_config(decoder=True)):
        each.bos_token_id, each.eos_token_id, each.pad_token_id = 1, None, 0
    make: Any = (AutoModelForImageTextToText if seeing else AutoModelForCausalLM).from_config
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in make(deepcopy(config)).parameters())
    if size > _MOST_PARAMETERS:
        raise NotBuilt(f"{size} parameters are too many")
    model: PreTrainedModel = make(config).float().eval()
    _draw_weights(model)
    model.generation_config.eos_token_id = None
    return model


def _arguments(config_class: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that make a config tiny, its parts' included."""
    default = config_class()
    arguments: dict[str, Any] = {}
    for name, size in {**_SIZES, **changes}.items():
        given = _attribute(default, name)
        if (
            name not in (*_LAYER_LISTS, "rope_parameters")
            and given is not _ABSENT
            and not isinstance(given, (list, dict))
        ):
            arguments[name] = size
    if "qk_rope_head_dim" in arguments:  # a size of its own there
        arguments.pop("head_dim", None)
    for name in _LAYER_LISTS:
        kinds = _attribute(default, name)
        if isinstance(kinds, (list, tuple)) and kinds:
            arguments[name] = (list(dict.fromkeys(kinds)) * LAYERS)[:LAYERS]
    arguments |= {name: value for name, value in changes.items() if name in _LAYER_LISTS and name in arguments}
    if "rope_parameters" in changes and _attribute(default, "rope_parameters") is not _ABSENT:
        arguments["rope_parameters"] = dict(changes["rope_parameters"])
    for name in getattr(default, "sub_configs", {}):
        part = getattr(default, name, None)
        if part is not None and not isinstance(part, dict):
            arguments[name] = _arguments(type(part), changes)
    arguments |= _SPECIAL.get(config_class.model_type, {})
    return {name: value for name, value in arguments.items() if value is not _ABSENT}


def _attribute(config: Any, name: str) -> Any:
    """What a config has by that name and can be given; absent where it is computed."""
    declared = getattr(type(config), name, None)
    if isinstance(declared, property) and declared.fset is None:
        return _ABSENT
    try:
        return getattr(config, name, _ABSENT)
    except RuntimeError:  # differs by layer, and can be given
        return None


def _draw_weights(model: PreTrainedModel) -> None:
    """Draws all matrices so wide that attention is far from uniform; the same each time."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.ndim >= 2 and parameter.is_floating_point():
                deviation = min(_GREATEST_DEVIATION, 1.2 / parameter.shape[-1] ** 0.5)
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
