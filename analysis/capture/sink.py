"""What a source of attention hands on."""

from __future__ import annotations

from typing import Protocol

import torch

from kvcompress.analysis.capture.layer_call import LayerCall
from kvcompress.engine.cache import CompressedCache


class AttentionSink(Protocol):
    """Takes what happens in a pass of the model."""

    @property
    def seen(self) -> int:
        """Tokens that the cache had seen before the pass in hand."""

    def add_layer(self, layer_idx: int, call: LayerCall) -> None:
        """A layer has attended."""

    def hear_cache(self, cache: CompressedCache) -> None:
        """The pass runs with a compressed cache."""

    def note_scores(self, layer_idx: int, positions: torch.Tensor, scores: torch.Tensor) -> None:
        """A compressed layer's block has been scored: int64 and float ``[batch, kv_heads, scored]``."""

    def note_stored(self, layer_idx: int, positions: torch.Tensor, first: int) -> None:
        """A compressed layer has stored what its last query sees: int64 ``[batch, kv_heads, tokens]``."""

    def note_evicted(self, layer_idx: int, positions: torch.Tensor, stage: str) -> None:
        """Tokens have been evicted: int64 ``[batch, kv_heads, n]``."""
