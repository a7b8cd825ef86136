"""Reads a call of the model: whether it is a decode step that a captured graph can serve, and what it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from kvcompress.engine.attach import is_attached, text_config
from kvcompress.engine.cache_argument import CACHE_ARGUMENTS, cache_name
from kvcompress.engine.layer import CompressedLayer
from kvcompress.engine.linear_states import keeps_no_keys

if TYPE_CHECKING:
    from kvcompress.engine.cache import CompressedCache

# Tensors that a graph takes, by copying them into buffers of its own.
_INPUTS = ("input_ids", "position_ids", "cache_position", "token_type_ids", "mm_token_type_ids")
# Arguments whose values are part of what was captured.
_CONSTANTS = ("use_cache", "return_dict", "logits_to_keep")
# Arguments that a step does without: a new token is real in every row, and the engine masks the slots by itself.
_IGNORED = ("attention_mask", *CACHE_ARGUMENTS)
_WANTED_MORE = ("output_attentions", "output_hidden_states")


@dataclass(frozen=True, slots=True)
class DecodeCall:
    """What one decode step is given.

    Attributes:
        inputs: the tensors.
        constants: the other arguments.
        key: what must be the same for a captured step to serve.
        cache_name: the argument that is the cache.
    """

    inputs: dict[str, torch.Tensor]
    constants: dict[str, Any]
    key: tuple[Any, ...]
    cache_name: str

    @classmethod
    def read(cls, arguments: dict[str, Any]) -> DecodeCall:
        """Reads the arguments of a call that :func:`why_not_captured` has nothing against."""
        inputs = {name: arguments[name] for name in _INPUTS if arguments.get(name) is not None}
        constants = {name: arguments[name] for name in _CONSTANTS if name in arguments}
        shapes = tuple((name, x.shape, x.dtype, x.device) for name, x in inputs.items())
        key = (shapes, tuple(constants.items()), torch.is_inference_mode_enabled())
        return cls(inputs, constants, key, cache_name(arguments) or CACHE_ARGUMENTS[-1])


def is_decode_step(model: PreTrainedModel, cache: CompressedCache, arguments: dict[str, Any]) -> bool:
    """Whether a call brings one new token per row to a cache all of whose layers decode.

    False, too, where the engine refuses the call: run as it is, it raises.
    """
    ids = arguments.get("input_ids")
    tokens = arguments.get("inputs_embeds") if ids is None else ids
    if not isinstance(tokens, torch.Tensor) or tokens.ndim < 2 or tokens.shape[1] != 1:
        return False
    if model.training or not is_attached(text_config(model)):
        return False
    return all(layer.decodes(1) for layer in cache.compressed_layers)


def why_not_captured(model: PreTrainedModel, cache: CompressedCache, arguments: dict[str, Any]) -> str | None:
    """Why no graph can serve a decode step, with the way out; None where one can."""
    if cache.observers:
        return "an observer is attached, and a replay cannot call it (cache.remove_observer)"
    others = [layer for layer in cache.layers if not isinstance(layer, CompressedLayer)]
    if not all(keeps_no_keys(layer) and layer.is_compileable for layer in others):
        return "some layers are not compressed, and theirs grow (compress_sliding=True takes sliding-window layers in)"
    if torch.is_grad_enabled():
        return "gradients are recorded (call the model under torch.no_grad())"
    if torch.is_autocast_enabled(model.device.type):
        return "autocast is on (load the model in the dtype that it shall run in)"
    config = text_config(model)
    for name in _WANTED_MORE:
        given = arguments.get(name)
        if given or (given is None and getattr(config, name, False)):
            return f"{name} is asked for"
    if not isinstance(arguments.get("input_ids"), torch.Tensor):
        return "the step is given inputs_embeds instead of input_ids"
    if not isinstance(arguments.get("logits_to_keep", 0), int) or arguments.get("use_cache") is False:
        return "logits_to_keep must be a number, and use_cache must not be False"
    if arguments.get("attention_mask") is not None and arguments.get("position_ids") is None and _padded(cache):
        return "the batch is padded, and the model is given no position_ids"
    known = {*_INPUTS, *_CONSTANTS, *_IGNORED, *_WANTED_MORE}
    unknown = [name for name, value in arguments.items() if value is not None and name not in known]
    return f"the model is given {', '.join(unknown)}" if unknown else None


def rebuilt(output: Any, tensor: Callable[[torch.Tensor], torch.Tensor], swap: tuple[Any, Any]) -> Any:
    """A model's output with each tensor replaced by ``tensor(it)``, and the object ``swap[0]`` by ``swap[1]``."""
    if output is swap[0]:
        return swap[1]
    if isinstance(output, torch.Tensor):
        return tensor(output)
    if isinstance(output, ModelOutput):
        return type(output)(**{name: rebuilt(value, tensor, swap) for name, value in output.items()})
    if type(output) in (tuple, list):
        return type(output)(rebuilt(value, tensor, swap) for value in output)
    return output


def _padded(cache: CompressedCache) -> bool:
    return any(layer.padding is not None for layer in cache.compressed_layers)
