"""What a cache tells about itself: bytes and tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from kvcompress.engine.layer import CompressedLayer
from kvcompress.engine.linear_states import linear_states


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """One compressed layer.

    Attributes:
        layer_idx: index in the model.
        tokens: tokens held, mean over batch and heads.
        budget: tokens kept by prefill, window excluded, for each batch row.
        num_bytes: bytes that its tensors hold.
        full_bytes: bytes if every token seen were kept.
    """

    layer_idx: int
    tokens: float
    budget: tuple[int, ...]
    num_bytes: int
    full_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """The whole cache.

    Attributes:
        policy: name of the policy.
        seen: tokens seen (of the longest row, padding included).
        num_bytes: bytes held, bookkeeping and layers that are not compressed included.
        full_bytes: bytes that a full cache would hold.
        layers: the compressed layers.
    """

    policy: str
    seen: int
    num_bytes: int
    full_bytes: int
    layers: tuple[LayerReport, ...]

    @property
    def saved(self) -> float:
        """Fraction of the full cache's bytes that is not held, at most 1; negative where more is held."""
        return 1 - self.num_bytes / self.full_bytes if self.full_bytes else 0.0

    def __str__(self) -> str:
        """One line for the cache, one per layer."""
        head = (
            f"{self.policy}: {self.num_bytes / 2**20:.2f} MiB held of {self.full_bytes / 2**20:.2f} MiB "
            f"({self.saved:.1%} saved), {self.seen} tokens seen"
        )
        lines = [f"  layer {layer.layer_idx:>3}: {layer.tokens:8.1f} tokens kept" for layer in self.layers]
        return "\n".join([head, *lines])


def layer_bytes(layer: Any) -> int:
    """Bytes of a layer's storages, each counted once."""
    if isinstance(layer, CompressedLayer):
        tensors = [] if layer.store is None else layer.store.tensors()
        tensors += [] if layer.order is None else [layer.order.order]
        tensors += [tensor for tensor in (layer.row_start, layer.padding) if tensor is not None]
        if layer.statistics is not None and layer.statistics.token_scores is not None:
            tensors.append(layer.statistics.token_scores)
    else:
        tensors = [value for value in vars(layer).values() if isinstance(value, torch.Tensor)]
    tensors += linear_states(layer)
    return _storage_bytes(tensors)


def _storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def layer_report(layer: CompressedLayer) -> LayerReport:
    """Describes a compressed layer that holds tokens."""
    store, statistics = layer.store, layer.statistics
    if store is None or statistics is None:
        raise ValueError(f"layer {layer.layer_idx} holds nothing yet")
    keys, values = store.slots.keys, store.slots.values
    per_token = keys.shape[-1] * keys.element_size() + values.shape[-1] * values.element_size()
    return LayerReport(
        layer_idx=layer.layer_idx,
        tokens=float((store.slots.positions >= 0).sum()) / store.rows,
        budget=tuple(statistics.budget.tolist()),
        num_bytes=layer_bytes(layer),
        full_bytes=int(layer.seen) * store.rows * per_token + _storage_bytes(linear_states(layer)),
    )
