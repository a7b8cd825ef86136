"""One layer's attention of a whole batch, and its sequences one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from kvcompress.analysis.capture.mask_rows import mask_rows
from kvcompress.analysis.capture.observation import Attended, MaskRows
from kvcompress.engine.events import DecodeEvent, PrefillEvent
from kvcompress.kernels.window_scores.reference import AttentionSpec


class LayerCall(Protocol):
    """A layer's attention of a batch."""

    @property
    def batch(self) -> int:
        """Sequences."""

    @property
    def queries(self) -> int:
        """Queries of each, padding included."""

    @property
    def first_query(self) -> int:
        """Position of the first query, padding counted."""

    @property
    def causal(self) -> bool:
        """Whether a query sees no later key, by what the call itself says."""

    def sequence(self, row: int, padding: int) -> Attended:
        """One sequence, its positions without its padding; it must have a query that is no padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainCall:
    """A call of an attention function that was given all keys.

    Attributes:
        query: ``[batch, query_heads, queries, head_dim]``.
        key: ``[batch, kv_heads, keys, head_dim]``.
        value: ``[batch, kv_heads, keys, value_dim]``.
        mask: as the function got it.
        spec: what the attention does to its logits.
        causal: whether a query sees no later key.
        first_query: position of the first query, padding counted.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: Any
    spec: AttentionSpec
    causal: bool
    first_query: int

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.query.shape[0]

    @property
    def queries(self) -> int:
        """Queries of each."""
        return self.query.shape[2]

    def sequence(self, row: int, padding: int) -> Attended:
        """One sequence; a cache of fixed size may have more keys than tokens seen, one of a sliding window fewer."""
        keys, total = self.key.shape[2], self.first_query + self.queries
        oldest = max(total - keys, 0)
        positions = torch.arange(oldest, oldest + keys, device=self.key.device)
        positions = torch.where(positions < total, positions, -1) if keys > total else positions
        usable = min(keys, total)  # what lies behind is room for tokens to come
        skipped = max(padding - self.first_query, 0)
        new = slice(usable - self.queries + skipped, usable)
        return Attended(
            query=self.query[row, :, skipped:].detach(),
            first_query=self.first_query + skipped - padding,
            keys=self.key[row, :, :usable].detach(),
            positions=(positions[:usable] - padding)[None],
            new_keys=self.key[row, :, new].detach(),
            new_values=self.value[row, :, new].detach(),
            spec=self.spec,
            causal=self.causal,
            mask=_later_rows(mask_rows(self.mask, row, usable), skipped),
        )


def _later_rows(mask: MaskRows | None, skipped: int) -> MaskRows | None:
    if mask is None or not skipped:
        return mask
    return lambda places: mask(places + skipped)


@dataclass(frozen=True, slots=True)
class PrefillCall:
    """A block of a compressed layer."""

    event: PrefillEvent
    first_query: int
    causal: bool = True

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.event.query.shape[0]

    @property
    def queries(self) -> int:
        """Queries of each."""
        return self.event.query.shape[2]

    def sequence(self, row: int, padding: int) -> Attended:
        """One sequence: the tokens that it held, and the block."""
        event = self.event
        skipped = max(padding - self.first_query, 0)
        first = self.first_query + skipped - padding
        positions, keys, values = _in_order(
            event.attended[row] - padding, event.keys[row].detach(), event.values[row].detach()
        )
        count = self.queries - skipped  # the block's tokens are the last, in every head
        return Attended(
            query=event.query[row, :, skipped:].detach(),
            first_query=first,
            keys=keys,
            positions=positions,
            new_keys=keys[:, keys.shape[1] - count :],
            new_values=values[:, values.shape[1] - count :],
            spec=event.spec,
            causal=True,
        )


@dataclass(frozen=True, slots=True)
class DecodeCall:
    """A decoded token of a compressed layer."""

    event: DecodeEvent
    queries: int = 1
    causal: bool = True

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.event.query.shape[0]

    @property
    def first_query(self) -> int:
        """Position of the token."""
        return self.event.position

    def sequence(self, row: int, padding: int) -> Attended:
        """One sequence: what its slots held as it attended."""
        event = self.event
        positions = torch.where(event.positions[row] >= 0, event.positions[row] - padding, -1)
        positions, keys, values = _in_order(positions, event.keys[row].detach(), event.values[row].detach())
        return Attended(
            query=event.query[row].detach(),
            first_query=event.position - padding,
            keys=keys,
            positions=positions,
            new_keys=keys[:, -1:],  # the newest token has the largest position
            new_values=values[:, -1:],
            spec=event.spec,
            causal=True,
        )


def _in_order(
    positions: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positions ``[heads, n]``, keys and values ``[heads, n, dim]`` by ascending position."""
    if positions.shape[1] < 2 or bool((positions[:, 1:] >= positions[:, :-1]).all()):
        return positions, keys, values
    order = positions.argsort(dim=1)
    index = order[..., None]
    return positions.gather(1, order), keys.take_along_dim(index, 1), values.take_along_dim(index, 1)
