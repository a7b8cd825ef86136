"""What the cascade knows of a layer that has been scored, and holds of it until its budget is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kvcompress.engine.layer import CompressedLayer


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredBlock:
    """A block that has been scored: what compaction needs of it, and no more (no query), since it may have to wait.

    Attributes:
        keys: ``[batch, kv_heads, tokens, head_dim]``, chronological.
        values: ``[batch, kv_heads, tokens, value_dim]``.
        positions: int64 ``[batch, kv_heads, tokens]``, -1 for no token.
        scores: float32 ``[batch, kv_heads, tokens - window]``, ``-inf`` for no token and ``+inf`` for sinks.
        window: tokens at the end that every row keeps.
    """

    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    scores: torch.Tensor
    window: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the storages that keys and values keep alive: a view counts as what it is a view of."""
        storages = [array.untyped_storage() for array in (self.keys, self.values)]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@dataclass(slots=True)
class ScoredLayer:
    """A layer of the running prefill.

    Attributes:
        layer: the layer.
        device_entropy: float32 ``[batch]``, as its scorer returned it.
        device_variance: likewise.
        available: int64 ``[batch, kv_heads]``, scored tokens that exist (no padding); on the device until fetched.
        present: int64 ``[batch]``, tokens that the layer had before it was compressed, window included, no padding.
        tokens: int64 ``[batch]``, tokens of each sequence seen so far, evicted ones included, no padding.
        entropy: per batch row, once fetched; None where the scorer gives none.
        variance: likewise.
        device_ladder: float32 ``[batch, seats]``, see :meth:`Cascade.ladder`; None where the allocator needs none.
        ladder: per batch row, once fetched, as far as its budget reaches.
        trimmed_to: the budgets that the layer was last cut to; None: it has not been compacted yet.
        block: what waits for a budget; None once it has been compacted.
    """

    layer: CompressedLayer
    device_entropy: torch.Tensor | None
    device_variance: torch.Tensor | None
    available: torch.Tensor
    present: torch.Tensor
    tokens: torch.Tensor
    entropy: list[float] | None = None
    variance: list[float] | None = None
    device_ladder: torch.Tensor | None = None
    ladder: list[NDArray[np.float64]] | None = None
    trimmed_to: list[int] | None = None
    block: ScoredBlock | None = None
    fetched: bool = False
