"""Overhears the log-sum-exp that a fused attention computes anyway, so that scoring need not read the keys twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Operators that return (output, log-sum-exp [batch, query_heads, queries], ...): what scaled_dot_product_attention
# chooses on a GPU and on a CPU, and what the package flash-attn calls. The argument with which some of them must be
# asked for it: they keep it for a backward pass only.
_SOURCES: Final[Mapping[str, str | None]] = MappingProxyType(
    {
        "aten::_scaled_dot_product_flash_attention": None,
        "aten::_scaled_dot_product_flash_attention_for_cpu": None,
        "aten::_scaled_dot_product_cudnn_attention": "compute_log_sumexp",
        "aten::_scaled_dot_product_efficient_attention": "compute_log_sumexp",
        "flash_attn::_flash_attn_forward": None,
    }
)
_COMPOSITE: Final = "aten::scaled_dot_product_attention"


class _Overhear(TorchDispatchMode):
    """Lets every operator run as it is, asks fused attentions for their log-sum-exp too, and keeps it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.heard: list[torch.Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func._schema.name == _COMPOSITE:  # in inference mode it arrives whole; its parts are what we listen to
            with self:
                return func.decompose(*args, **(kwargs or {}))
        if func._schema.name not in _SOURCES:
            return func(*args, **(kwargs or {}))
        result = func(*_asking(func, args), **(kwargs or {}))
        self.heard.append(_without_last_axis(result[1]))
        return result


def _asking(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a fused attention, with the request for its log-sum-exp where it needs one."""
    request = _SOURCES[func._schema.name]
    if request is None:
        return args
    place = [argument.name for argument in func._schema.arguments].index(request)
    return (*args[:place], True, *args[place + 1 :])


def _without_last_axis(found: torch.Tensor) -> torch.Tensor:
    """That of cuDNN has a last axis of one element."""
    return found.squeeze(-1) if found.ndim == 4 and found.shape[-1] == 1 else found


def overhear_log_sum_exp(
    attend: Callable[[], tuple[torch.Tensor, torch.Tensor | None]], shape: tuple[int, ...]
) -> tuple[tuple[torch.Tensor, torch.Tensor | None], torch.Tensor | None]:
    """Runs an attention and keeps the log-sum-exp of its logits, if it computes one.

    Args:
        attend: the attention, whichever implementation; called once, its result unchanged.
        shape: ``(batch, query_heads, queries)``.

    Returns:
        ``(result, log-sum-exp)``: float32 ``[batch, query_heads, queries]``, natural, over all keys that each query
        sees, learned sinks left out; None where the implementation has none or where it was not one attention.
    """
    if torch.compiler.is_compiling():
        return attend(), None
    with _Overhear() as mode:
        result = attend()
    if len(mode.heard) != 1 or mode.heard[0].ndim != 3:
        return result, None
    found = mode.heard[0][:, :, : shape[2]]  # some kernels pad the queries
    return result, found if found.shape == shape else None
