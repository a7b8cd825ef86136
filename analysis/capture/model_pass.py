"""One pass of the model, from its inputs to the events of the sequences in its batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kvcompress.engine.cache_argument import given_cache


@dataclass(frozen=True, slots=True, kw_only=True)
class PassInputs:
    """What the model was called with.

    Attributes:
        token_ids: int64 ``[batch, queries]``; None where the call had none (embeddings, other inputs).
        attention_mask: ``[batch, tokens]``, or None.
        seen: tokens that the cache had seen before; 0 without a cache.
        cached: whether a cache was given.
    """

    token_ids: torch.Tensor | None
    attention_mask: torch.Tensor | None
    seen: int
    cached: bool

    @classmethod
    def of_call(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> PassInputs:
        """Reads the arguments of a model's forward."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        mask = kwargs.get("attention_mask")
        cache: Any = given_cache(kwargs)
        return cls(
            token_ids=ids if _is_matrix(ids) and not ids.is_floating_point() else None,
            attention_mask=mask if _is_matrix(mask) else None,
            seen=int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0,
            cached=hasattr(cache, "get_seq_length"),
        )

    def padding(self, batch: int) -> list[int]:
        """Padding before each sequence's first token."""
        if self.attention_mask is None:
            return [0] * batch
        real = self.attention_mask.bool()
        first = torch.where(real.any(1), real.int().argmax(1), real.shape[1])
        pads: list[int] = first.tolist()
        return pads

    def ids_of(self, row: int, queries: int, padding: int) -> torch.Tensor:
        """Ids of one sequence's new tokens, int64 ``[queries less padding among them]``; -1 where unknown."""
        skipped = max(padding - self.seen, 0)
        count = queries - skipped
        if self.token_ids is None or self.token_ids.shape[1] != queries:
            return torch.full((max(count, 0),), -1)
        return self.token_ids[row, skipped:].detach().cpu().long()


def _is_matrix(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 2
