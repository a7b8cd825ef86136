"""Reads what transformers' masks say, whatever their form: bool, additive float, 2-D padding or flex block mask."""

from __future__ import annotations

from typing import Any

import torch

from kvcompress.errors import UnsupportedModelError


def last_query_mask(mask: Any, batch: int, tokens: int, device: torch.device) -> torch.Tensor | None:
    """What the last query of a block may see.

    A key that the last query may not see is padding or has left the sliding window: no later query needs it.

    Args:
        mask: the mask that transformers made for the block, or None.
        batch: batch size.
        tokens: keys of the block.
        device: where to put the result.

    Returns:
        bool ``[batch, tokens]``, or None where all are visible.
    """
    if mask is None:
        return None
    if isinstance(mask, torch.Tensor):
        if mask.ndim == 2:
            return mask[:, -tokens:].bool()
        _check_heads(mask)
        return _as_bool(mask[:, 0, -1, -tokens:]).expand(batch, tokens)
    rows = torch.arange(batch, device=device)[:, None]
    zero = torch.zeros((), dtype=torch.long, device=device)
    keys = torch.arange(tokens, device=device)[None]
    visible: torch.Tensor = mask.mask_mod(rows, zero, zero + mask.shape[-2] - 1, keys)
    return visible.expand(batch, tokens)


def token_mask(mask: Any, tokens: int, batch: int, device: torch.device) -> torch.Tensor | None:
    """Which tokens of a block exist, whether or not the last query still sees them: a token that exists sees itself.

    Args:
        mask: the mask that transformers made for the block, or None.
        tokens: keys of the block.
        batch: batch size.
        device: where to put the result.

    Returns:
        bool ``[batch, tokens]``, or None where all exist.
    """
    if mask is None:
        return None
    if isinstance(mask, torch.Tensor):
        if mask.ndim == 2:
            return mask[:, -tokens:].bool()
        _check_heads(mask)
        return _as_bool(mask[:, 0, -tokens:, -tokens:].diagonal(dim1=1, dim2=2)).expand(batch, tokens)
    rows = torch.arange(batch, device=device)[:, None]
    index = torch.arange(tokens, device=device)[None]
    exists: torch.Tensor = mask.mask_mod(rows, torch.zeros((), dtype=torch.long, device=device), index, index)
    return exists.expand(batch, tokens)


def block_mask(mask: Any, batch: int, queries: int, device: torch.device) -> torch.Tensor:
    """What the queries of a new block see of the block itself.

    Args:
        mask: the mask that transformers made for the block (``queries`` keys), or None for a plain causal one.
        batch: batch size.
        queries: tokens of the block.
        device: where to put the result.

    Returns:
        bool ``[batch, queries, queries]``.
    """
    causal = torch.ones(queries, queries, dtype=torch.bool, device=device).tril()[None]
    if mask is None:
        return causal.expand(batch, -1, -1)
    if isinstance(mask, torch.Tensor):
        if mask.ndim == 2:
            return causal & mask[:, None, -queries:].bool()
        _check_heads(mask)
        return _as_bool(mask[:, 0, -queries:, -queries:]).expand(batch, -1, -1)
    rows = torch.arange(batch, device=device)[:, None, None]
    zero = torch.zeros((), dtype=torch.long, device=device)
    index = torch.arange(queries, device=device)
    visible: torch.Tensor = mask.mask_mod(rows, zero, index[None, :, None], index[None, None, :])
    return visible.expand(batch, queries, queries)


def _as_bool(mask: torch.Tensor) -> torch.Tensor:
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _check_heads(mask: torch.Tensor) -> None:
    if mask.shape[1] != 1:
        raise UnsupportedModelError(
            f"compression needs one attention mask for all heads; got a mask of shape {tuple(mask.shape)}, one per "
            "head. Use DynamicCache for this model."
        )
