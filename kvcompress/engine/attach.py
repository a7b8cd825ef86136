"""Attaches the engine to a model, through two public registries of transformers and nothing else."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from kvcompress.engine.attention import attention_forward
from kvcompress.engine.graph_forward import install_again, remove
from kvcompress.engine.guards import checked_mask
from kvcompress.errors import UnsupportedModelError

PREFIX = "kvc_"

_base_of: dict[str, str] = {}  # registered name -> the implementation that it stands on
_lock = threading.Lock()


def attach(model: PreTrainedModel) -> PreTrainedModel:
    """Lets the engine see a model's attention. Idempotent; caches attach their model by themselves.

    The model computes the same as before with any other cache, and keeps its attention implementation as the base.

    Args:
        model: a decoder whose attention goes through transformers' ``AttentionInterface``.

    Returns:
        The model.

    Raises:
        UnsupportedModelError: the model's attention cannot be set.
    """
    with _lock:
        current = text_config(model)._attn_implementation
        if current in _base_of:
            return model
        if not model._can_set_attn_implementation():
            raise UnsupportedModelError(
                "compression needs a model whose attention goes through transformers' AttentionInterface; got "
                f"{type(model).__name__}, which has attention code of its own. Use DynamicCache for this model."
            )
        _set_text_implementation(model, _register(current or "eager"))
        install_again(model)
    return model


def detach(model: PreTrainedModel) -> PreTrainedModel:
    """Gives a model back the attention implementation that it had. Caches made for it must not be used any more."""
    with _lock:
        current = text_config(model)._attn_implementation
        if current in _base_of:
            _set_text_implementation(model, _base_of[current])
        remove(model)
    return model


def is_attached(config: Any) -> bool:
    """Whether a text config's attention implementation is the engine's."""
    return config._attn_implementation in _base_of


def text_config(model: PreTrainedModel) -> Any:
    """The config of the model's decoder (of a vision-language model, its text part)."""
    return model.config.get_text_config(decoder=True)


def devices_of(model: PreTrainedModel) -> list[str]:
    """The devices that a model was spread over when it was loaded, by name; none where it was not."""
    return sorted({str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()})


def _register(base: str) -> str:
    # transformers loads a flash kernel for any name with "flash" in it, and a hub kernel for one with "/".
    name = PREFIX + base.replace("flash_attention", "fa").replace("flash", "fa").replace("/", "_")
    if name not in _base_of:
        AttentionInterface.register(name, partial(attention_forward, base))
        if base in ALL_MASK_ATTENTION_FUNCTIONS:
            AttentionMaskInterface.register(name, partial(checked_mask, ALL_MASK_ATTENTION_FUNCTIONS[base]))
        _base_of[name] = base
    return name


def _set_text_implementation(model: PreTrainedModel, name: str) -> None:
    text = text_config(model)
    if text is model.config:
        model.set_attn_implementation(name)
    else:
        key = next(key for key in model.config.sub_configs if getattr(model.config, key, None) is text)
        model.set_attn_implementation({key: name})
    if text._attn_implementation != name:
        raise UnsupportedModelError(
            f"the attention implementation of {type(model).__name__} could not be set: it stayed "
            f"{text._attn_implementation!r}. Use DynamicCache for this model."
        )
