"""What nn.MultiheadAttention attends to: its projections, done once more beside the call itself."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

import torch
import torch.nn.functional as F

_SIGNATURE: Final = inspect.signature(F.multi_head_attention_forward)


def projected(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``scaled_dot_product_attention`` that a call of ``multi_head_attention_forward`` amounts to.

    Args:
        args: of the call.
        kwargs: of the call.

    Returns:
        ``query``, ``key``, ``value`` ``[batch, heads, tokens, head_dim]`` and ``attn_mask``.

    Raises:
        ValueError: the module appends keys of its own.
    """
    bound = _SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    extra = [name for name in ("bias_k", "bias_v", "static_k", "static_v") if given[name] is not None]
    if extra or given["add_zero_attn"]:
        raise ValueError(
            f"nn.MultiheadAttention with {', '.join(extra) or 'add_zero_attn'} appends keys that are no tokens, which "
            "a recorder cannot place. Leave its layer out with layers=[...]."
        )
    heads = given["num_heads"]
    tensors = {
        name: _heads_of(F.linear(_batched(given[name]), weight, bias), heads)
        for name, (weight, bias) in _projections(given).items()
    }
    return {**tensors, "attn_mask": _mask(given, heads)}


def _projections(given: Mapping[str, Any]) -> dict[str, tuple[torch.Tensor, torch.Tensor | None]]:
    biases = (None,) * 3 if given["in_proj_bias"] is None else given["in_proj_bias"].chunk(3)
    if given["use_separate_proj_weight"]:
        weights = tuple(given[f"{letter}_proj_weight"] for letter in "qkv")
    else:
        weights = given["in_proj_weight"].chunk(3)
    return dict(zip(("query", "key", "value"), zip(weights, biases, strict=True), strict=True))


def _batched(tokens: torch.Tensor) -> torch.Tensor:
    """``[tokens, batch, width]``."""
    return tokens if tokens.ndim == 3 else tokens.unsqueeze(1)


def _heads_of(tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """``[batch, heads, tokens, head_dim]`` of ``[tokens, batch, width]``."""
    return tokens.view(*tokens.shape[:2], heads, -1).permute(1, 2, 0, 3)


def _mask(given: Mapping[str, Any], heads: int) -> torch.Tensor | None:
    """Both masks as one additive one, ``[batch or 1, heads or 1, queries or 1, keys]``; a bool True hides there."""
    found = None
    mask, padding = given["attn_mask"], given["key_padding_mask"]
    if mask is not None:
        mask = _additive(mask)
        found = mask.unflatten(0, (-1, heads)) if mask.ndim == 3 else mask[None, None]
    if padding is not None:
        padding = _additive(padding if padding.ndim == 2 else padding[None])[:, None, None]
        found = padding if found is None else found + padding
    return found


def _additive(mask: torch.Tensor) -> torch.Tensor:
    if mask.is_floating_point():
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(mask.bool(), float("-inf"))
