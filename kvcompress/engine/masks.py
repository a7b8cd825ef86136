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
    keys = torch.arange(tokens, device=device)
    return _read(mask, batch, tokens, keys[-1:], keys)


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
    index = torch.arange(tokens, device=device)
    return _read(mask, batch, tokens, index, index)


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
    index = torch.arange(queries, device=device)
    causal = (index[:, None] >= index).expand(batch, -1, -1)
    if mask is None:
        return causal
    visible = _read(mask, batch, queries, index[:, None], index)
    return causal & visible if isinstance(mask, torch.Tensor) and mask.ndim == 2 else visible


def _read(mask: Any, batch: int, tokens: int, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """What a mask of any form says of pairs of tokens of a block.

    Args:
        mask: 2-D padding (it says nothing of queries), 4-D bool or additive float, or a flex block mask.
        batch: batch size.
        tokens: tokens of the block: the last rows and columns of a tensor.
        query: int64, places of queries in the block.
        key: int64, places of keys; broadcasts with ``query`` to ``[...]``.

    Returns:
        bool ``[batch, ...]``.
    """
    query, key = torch.broadcast_tensors(query, key)
    if not isinstance(mask, torch.Tensor):
        rows = torch.arange(batch, device=key.device).view(-1, *[1] * key.ndim)
        head = torch.zeros((), dtype=torch.long, device=key.device)
        visible: torch.Tensor = mask.mask_mod(rows, head, query[None], key[None])
        return visible.expand(batch, *key.shape)
    if mask.ndim == 2:
        return mask[:, -tokens:][:, key].bool()
    _check_heads(mask)
    return _as_bool(mask[:, 0, -tokens:, -tokens:][:, query, key]).expand(batch, *key.shape)


def _as_bool(mask: torch.Tensor) -> torch.Tensor:
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _check_heads(mask: torch.Tensor) -> None:
    if mask.shape[1] != 1:
        raise UnsupportedModelError(
            f"compression needs one attention mask for all heads; got a mask of shape {tuple(mask.shape)}, one per "
            "head. Use DynamicCache for this model."
        )
