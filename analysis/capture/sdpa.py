"""Hears any PyTorch model that calls scaled_dot_product_attention or nn.MultiheadAttention, by intercepting them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from kvcompress.analysis.capture.layer_call import PlainCall
from kvcompress.analysis.capture.multi_head import projected
from kvcompress.analysis.capture.sink import AttentionSink
from kvcompress.kernels.window_scores.reference import AttentionSpec

_PARAMETERS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


class SdpaSource(TorchFunctionMode):
    """Lets every attention run as it is, and hands on what it attended to.

    Layers are numbered by their order within a pass of the model. Calls whose queries outnumber their keys (attention
    to another sequence) are left alone and counted.

    Args:
        sink: where it goes.
        layers: numbers of the layers that are captured; None: all.
    """

    def __init__(self, sink: AttentionSink, layers: frozenset[int] | None) -> None:
        super().__init__()
        self.sink, self.layers = sink, layers
        self.number = 0
        self.left_out = 0

    def start(self) -> None:
        """Begins to listen, in this thread."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """Ends listening."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def begin_pass(self) -> None:
        """The model has been called: the next call is its first layer's."""
        self.number = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        with torch.no_grad():
            if func is F.scaled_dot_product_attention:
                self._hear({**dict(zip(_PARAMETERS, args, strict=False)), **kwargs})
            elif func is F.multi_head_attention_forward:  # what it calls inside is hidden from the mode
                self._hear(projected(args, kwargs))
        return result

    def _hear(self, given: Mapping[str, Any]) -> None:
        query, key, value = (_four_axes(given[name]) for name in ("query", "key", "value"))
        queries, keys = query.shape[2], key.shape[2]
        if queries > keys:
            self.left_out += 1
            return
        number, self.number = self.number, self.number + 1
        if self.layers is not None and number not in self.layers:
            return
        scale = given.get("scale")
        causal = bool(given.get("is_causal", False)) or queries == 1 < keys
        call = PlainCall(
            query=query,
            key=key,
            value=value,
            mask=given.get("attn_mask"),
            spec=AttentionSpec(scaling=query.shape[-1] ** -0.5 if scale is None else scale),
            causal=causal,
            first_query=keys - queries,
        )
        self.sink.add_layer(number, call)


def _four_axes(tensor: torch.Tensor) -> torch.Tensor:
    """``[batch, heads, tokens, dim]`` of ``[heads, tokens, dim]`` or ``[tokens, dim]`` or with more leading axes."""
    if tensor.ndim < 2:
        raise ValueError(f"attention must have tokens and dimensions, got shape {list(tensor.shape)}")
    if tensor.ndim > 4:
        return tensor.flatten(0, tensor.ndim - 4)
    return tensor.view(*[1] * (4 - tensor.ndim), *tensor.shape)


def uses_attention_interface(model: torch.nn.Module) -> bool:
    """Whether a model's attention goes through transformers' AttentionInterface."""
    able = getattr(model, "_can_set_attn_implementation", None)
    return able is not None and inspect.ismethod(able) and bool(able())
