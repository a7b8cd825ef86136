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


def is_short_name(model: str) -> bool:
    """Whether what was given to ``--model`` is a short name; a folder of that name goes first."""
    return model in HUB_IDS and not Path(model).is_dir()


def shown_name(model: str) -> str:
    """What files call a model: not where on this machine it lies."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model
