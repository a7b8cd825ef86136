"""Models of known shape with random weights: speed and memory do not depend on what a model says.

Sources: the `config.json` of meta-llama/Llama-3.1-8B, meta-llama/Llama-3.2-1B, Qwen/Qwen3-8B and Qwen/Qwen3-0.6B on the
Hugging Face hub. Of these the sizes and the rotary embedding are taken; no text ever ends by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

_MEMINFO: Final = Path("/proc/meminfo")


def _llama(**sizes: Any) -> dict[str, Any]:
    factor = sizes.pop("rope_factor")
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return {
        "model_type": "llama",
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rope_parameters": rope,
        **sizes,
    }


def _qwen3(**sizes: Any) -> dict[str, Any]:
    return {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "num_key_value_heads": 8,
        "head_dim": 128,
        **sizes,
    }


SHAPES: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "llama-3.1-8b": _llama(
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            rope_factor=8.0,
        ),
        "llama-3.2-1b": _llama(
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=64,
            rope_factor=32.0,
            tie_word_embeddings=True,
        ),
        "qwen3-8b": _qwen3(hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32),
        "qwen3-0.6b": _qwen3(
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            tie_word_embeddings=True,
        ),
        # Nobody's: for the CPU, and to see that everything runs.
        "tiny": _llama(
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=32,
            vocab_size=512,
            rope_factor=8.0,
        ),
    }
)


def shape_config(name: str) -> Any:
    """The configuration of a named shape.

    Raises:
        ValueError: no such shape.
    """
    if name not in SHAPES:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}; got {name!r}")
    endless = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    sizes = dict(SHAPES[name])
    return AutoConfig.for_model(sizes.pop("model_type"), **sizes, **endless)


def random_model(name: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Makes a model of a named shape; its weights are drawn on the device, nothing is loaded.

    Args:
        name: a key of :data:`SHAPES`.
        device: where it is made.
        dtype: of its weights.

    Raises:
        ValueError: no such shape, or its weights do not fit into the device's memory.
    """
    config = shape_config(name)
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        parameters = auto.from_config(config, dtype=dtype).parameters()
    needed, free = sum(parameter.nbytes for parameter in parameters), free_bytes(device)
    if free is not None and needed > free:
        raise ValueError(
            f"the weights of shape {name!r} need {needed / 2**30:.1f} GiB in {str(dtype).removeprefix('torch.')}, and "
            f"{device} has {free / 2**30:.1f} GiB free; take a smaller shape, or a dtype of fewer bytes"
        )
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = auto.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.eval()
    return model


def free_bytes(device: torch.device) -> int | None:
    """Memory that a device has left; None where nothing tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if not _MEMINFO.is_file():
        return None
    lines = dict(line.split(":", 1) for line in _MEMINFO.read_text(encoding="utf-8").splitlines() if ":" in line)
    return 1024 * int(lines["MemAvailable"].split()[0]) if "MemAvailable" in lines else None
