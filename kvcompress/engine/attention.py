"""The attention function that transformers calls, and the base implementation that it stands on."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvcompress.engine import listening
from kvcompress.engine.guards import check_selection
from kvcompress.errors import CacheStateError, UnsupportedModelError
from kvcompress.kernels.window_scores.reference import AttentionSpec

if TYPE_CHECKING:
    from kvcompress.engine.cache import CompressedCache
    from kvcompress.engine.layer import CompressedLayer

_TAG = "_kvcompress"  # attribute of the key VIEW that CompressedCache.update returns; never of a stored tensor


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One call of a layer's attention, as transformers made it.

    Attributes:
        base: name of the base implementation.
        module: the attention module.
        query: ``[batch, query_heads, queries, head_dim]``, rotary embedding and norms applied.
        key: ``[batch, kv_heads, queries, head_dim]``, the new block alone.
        value: ``[batch, kv_heads, queries, value_dim]``.
        mask: whatever the base's mask function made for the new block.
        options: the remaining keyword arguments.
    """

    base: str
    module: torch.nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: Any
    options: dict[str, Any]

    def spec(self, sliding_window: int | None) -> AttentionSpec:
        """What this attention does to its logits."""
        scaling = self.options.get("scaling")
        sinks = self.options.get("s_aux")
        return AttentionSpec(
            scaling=self.query.shape[-1] ** -0.5 if scaling is None else scaling,
            softcap=self.options.get("softcap"),
            sinks=getattr(self.module, "sinks", None) if sinks is None else sinks,
            sliding_window=sliding_window,
        )

    def in_dtype(self, dtype: torch.dtype) -> AttentionCall:
        """The call with queries, keys and values in one dtype; itself where they are."""
        if self.query.dtype == self.key.dtype == self.value.dtype == dtype:
            return self
        return replace(self, query=self.query.to(dtype), key=self.key.to(dtype), value=self.value.to(dtype))

    def run_base(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The base implementation on the new block alone."""
        return _run_base(self.base, self.module, self.query, self.key, self.value, self.mask, **self.options)


def attention_forward(
    base: str,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention over a compressed layer where the key carries the engine's tag, else the base, untouched.

    Args:
        base: name of the base implementation.
        module: the attention module.
        query: ``[batch, query_heads, queries, head_dim]``.
        key: ``[batch, kv_heads, tokens, head_dim]``.
        value: ``[batch, kv_heads, tokens, value_dim]``.
        attention_mask: as the base's mask function made it.
        **kwargs: as for any attention function of transformers.

    Returns:
        ``(output [batch, queries, query_heads, value_dim], weights or None)``.
    """
    tag: tuple[CompressedCache, CompressedLayer] | None = getattr(key, _TAG, None)
    check_selection(base, module, kwargs, compressed=tag is not None)
    attention_mask = _mask_of_last_queries(base, module, query, key, attention_mask)
    if tag is None:  # another cache, a layer that is not compressed, or an encoder
        output = _run_base(base, module, query, key, value, attention_mask, **kwargs)
        for listener in listening.listeners:
            listener.on_attention(AttentionCall(base, module, query, key, value, attention_mask, kwargs))
        return output
    cache, layer = tag
    for listener in listening.listeners:
        listener.on_compressed(cache, module)
    if module.training:
        raise CacheStateError(
            "a compressed cache works for inference only, and this model is in training mode. Call model.eval() first."
        )
    if kwargs.get("position_bias") is not None:
        raise UnsupportedModelError(
            f"{type(module).__name__} adds a position bias to its attention, which compression does not support. Use "
            "DynamicCache for this model."
        )
    call = AttentionCall(base, module, query, key, value, attention_mask, kwargs)
    return cache.attend(layer, call)


def _mask_of_last_queries(base: str, module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, mask: Any) -> Any:
    """The mask, made where a model that shares keys between layers (Gemma 4) leaves out all queries but the last.

    It does so only where there is a mask, since without one "sdpa" takes the queries for the first; but it looks for
    that by the name of the implementation, and ours has another.
    """
    queries, keys = query.shape[2], key.shape[2]
    shares = getattr(module, "is_kv_shared_layer", False)
    if base != "sdpa" or mask is not None or not shares or not 1 < queries < keys:
        return mask
    return torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)[None, None]


def tag_key(key: torch.Tensor, cache: CompressedCache, layer: CompressedLayer) -> torch.Tensor:
    """A view of ``key`` that leads the attention function to its cache. The view dies with the call."""
    view = key.view(key.shape)
    setattr(view, _TAG, (cache, layer))
    return view


def _run_base(
    base: str, module: torch.nn.Module, *tensors: Any, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    function = _eager_forward(module) if base == "eager" else ALL_ATTENTION_FUNCTIONS[base]
    target: Any = _FlashModule(module, base) if "flash" in base else module
    output: tuple[torch.Tensor, torch.Tensor | None] = function(target, *tensors, **kwargs)
    return output


def _eager_forward(module: torch.nn.Module) -> Any:
    """The eager attention of the file that defines the module: it knows the model's softcap and sinks."""
    for cls in type(module).__mro__:
        function = getattr(sys.modules.get(cls.__module__), "eager_attention_forward", None)
        if function is not None:
            return function
    raise CacheStateError(f"no eager_attention_forward beside {type(module).__name__}; set attn_implementation='sdpa'")


class _FlashModule:
    """The module as flash attention must see it: its config names the base implementation."""

    def __init__(self, module: torch.nn.Module, base: str) -> None:
        self._module = module
        self.config = _Overlay(module.config, _attn_implementation=base)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _Overlay:
    """An object with some attributes replaced."""

    def __init__(self, target: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced)
        self.__dict__["_target"] = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_target"], name)
