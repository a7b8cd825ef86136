"""Reads the rows of an attention mask that belong to observed queries, and no others."""

from __future__ import annotations

from typing import Any

import torch

from kvcompress.analysis.capture.observation import MaskRows


def mask_rows(mask: Any, row: int, keys: int) -> MaskRows | None:
    """A reader of what a mask says of one sequence.

    Args:
        mask: bool (True: may be seen) or additive float, ``[batch or 1, heads or 1, queries, keys]`` or fewer axes; of
            transformers also 2-D padding ``[batch, keys]`` or a flex block mask; None.
        row: which sequence of the batch.
        keys: keys that were attended to; a mask may have more columns.

    Returns:
        None where nothing is masked.
    """
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor):
        return _of_flex(mask, row, keys)
    if mask.ndim == 2 and not mask.is_floating_point() and mask.dtype != torch.bool:
        padding = mask[row, :keys].bool()
        return lambda places: (padding.expand(places.numel(), -1), None)
    return _of_dense(_four_axes(mask), row, keys)


def _four_axes(mask: torch.Tensor) -> torch.Tensor:
    """``[batch or 1, heads or 1, queries, keys]``."""
    return mask.view(*[1] * (4 - mask.ndim), *mask.shape)


def _of_dense(mask: torch.Tensor, row: int, keys: int) -> MaskRows:
    own = mask[row if mask.shape[0] > 1 else 0]  # [heads or 1, queries, keys]

    def read(places: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        rows = own[:, places, :keys] if own.shape[1] > 1 else own[:, :, :keys].expand(-1, places.numel(), -1)
        if rows.dtype == torch.bool:
            return _same_for_all_heads(rows), None
        visible = rows > torch.finfo(rows.dtype).min / 2
        hidden = rows.masked_fill(~visible, 0.0)
        return _any_head(visible), rows if bool(hidden.any()) or visible.shape[0] > 1 else None

    return read


def _same_for_all_heads(rows: torch.Tensor) -> torch.Tensor:
    if rows.shape[0] > 1 and not bool((rows == rows[:1]).all()):
        raise ValueError(
            "a bool attention mask must be the same for all heads to be captured; this one differs between heads. "
            "Give it as an additive float mask."
        )
    return rows[0]


def _any_head(visible: torch.Tensor) -> torch.Tensor:
    """What some head sees; what the others don't is in the bias."""
    return visible.any(0)


def _of_flex(mask: Any, row: int, keys: int) -> MaskRows:
    def read(places: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        number = torch.tensor(row, device=places.device)
        head = torch.zeros((), dtype=torch.long, device=places.device)
        key = torch.arange(keys, device=places.device)
        return mask.mask_mod(number, head, places[:, None], key[None]).expand(places.numel(), keys), None

    return read
