"""Events for observers. Nothing is built or computed for them unless somebody listens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from kvcompress.engine.score import LayerScores
from kvcompress.kernels.window_scores.reference import AttentionSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillEvent:
    """A block has been attended and scored, and nothing of it evicted yet.

    Attributes:
        layer_idx: index of the layer in the model.
        query: ``[batch, query_heads, queries, head_dim]``.
        keys: ``[batch, kv_heads, tokens, head_dim]``, held tokens and the new block, chronological.
        values: ``[batch, kv_heads, tokens, value_dim]``.
        positions: int64 ``[batch, kv_heads, tokens]``, -1 where there is no token.
        scores: what the scorer returned.
        spec: what the attention does to its logits.
        attended: ``positions`` and those of tokens that some queries of the block saw and the last one no longer does
            (sliding windows); then not ascending.
    """

    layer_idx: int
    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    scores: LayerScores
    spec: AttentionSpec
    attended: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class EvictEvent:
    """Tokens of a layer have been evicted.

    Attributes:
        layer_idx: index of the layer in the model.
        stage: ``"prefill"`` (the layer's own turn), ``"cascade"`` (trimmed for a later layer) or ``"decode"``.
        evicted: int64 ``[batch, kv_heads, most]`` absolute positions, ascending, -1 padded at the end.
    """

    layer_idx: int
    stage: Literal["prefill", "cascade", "decode"]
    evicted: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeEvent:
    """One token has been decoded in a layer.

    Attributes:
        layer_idx: index of the layer in the model.
        position: absolute position of the new token.
        query: ``[batch, query_heads, 1, head_dim]``.
        keys: ``[batch, kv_heads, longest, head_dim]``, the slots, in no order; the new token's is among them.
        values: ``[batch, kv_heads, longest, value_dim]``.
        positions: int64 ``[batch, kv_heads, longest]`` absolute position of each slot that took part, -1 for none.
        probability: float32 ``[batch, kv_heads, longest]``, attention of the query, mean over the group.
        spec: what the attention does to its logits.
    """

    layer_idx: int
    position: int
    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    probability: torch.Tensor
    spec: AttentionSpec


class Observer:
    """Base of observers: override what you want to hear. Tensors belong to the engine: read or copy, never write."""

    def on_prefill(self, event: PrefillEvent) -> None:
        """A block has been scored."""

    def on_evict(self, event: EvictEvent) -> None:
        """Tokens have been evicted."""

    def on_decode(self, event: DecodeEvent) -> None:
        """A token has been decoded."""


def missing_positions(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Positions of ``before`` that are not in ``after``.

    Args:
        before: int64 ``[batch, kv_heads, n]``, -1 for none.
        after: int64 ``[batch, kv_heads, m]``, -1 for none.

    Returns:
        int64 ``[batch, kv_heads, most]``, ascending, -1 padded at the end.
    """
    if after.shape[-1] == 0:
        return ascending(before)
    ordered = after.sort(dim=-1).values
    index = torch.searchsorted(ordered, before.contiguous()).clamp(max=ordered.shape[-1] - 1)
    return ascending(before.masked_fill(ordered.gather(-1, index) == before, -1))


def ascending(positions: torch.Tensor) -> torch.Tensor:
    """Sorts positions ascending, -1 last, and cuts the columns that hold nothing: int64 ``[batch, kv_heads, most]``."""
    last = torch.iinfo(torch.int64).max
    ordered = positions.masked_fill(positions < 0, last).sort(dim=-1).values
    most = int((ordered != last).sum(-1).max()) if ordered.numel() else 0
    return ordered[..., :most].masked_fill(ordered[..., :most] == last, -1)
