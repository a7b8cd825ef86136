"""Short names of models, as the authors of CAKE use them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

# Keys are those of kvcompress.presets.PRESETS.
HUB_IDS: Final[Mapping[str, str]] = {
    "llama2-7b-chat-4k": "meta-llama/Llama-2-7b-chat-hf",
    "llama2-13b-chat-4k": "meta-llama/Llama-2-13b-chat-hf",
    "llama3.1-8b-128k": "meta-llama/Llama-3.1-8B-Instruct",
    "mistral-0.3-7b-32k": "mistralai/Mistral-7B-Instruct-v0.3",
    "qwen2.5-7b-instruct": "Qwen/Qwen2.5-7B-Instruct",
}


def hub_id(model: str | None) -> str | None:
    """What to load for ``--model``: the hub's id of a short name, and everything else as it is."""
    return HUB_IDS[model] if model is not None and is_short_name(model) else model


def is_short_name(model: str | None) -> bool:
    """Whether ``--model`` is a short name; a folder of that name goes first."""
    return model is not None and model in HUB_IDS and not Path(model).is_dir()
