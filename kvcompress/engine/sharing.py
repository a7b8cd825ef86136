"""Layers that attend to the keys of an earlier layer (Gemma 3n, Gemma 4 E2B and E4B): they read, and store nothing.

They are given the very keys that :meth:`CompressedCache.update` returned to the layer that owns them. What that layer
attended to is left there for them; it goes with the keys, when the model's forward lets go of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from kvcompress.engine.layer import CompressedLayer
from kvcompress.errors import UnsupportedModelError

if TYPE_CHECKING:
    from kvcompress.engine.attention import AttentionCall

# Attends with another layer's queries; returns (output [batch, queries, query_heads, value_dim], weights or None).
Reader = Callable[["AttentionCall"], tuple[torch.Tensor, torch.Tensor | None]]

_READER = "_kvcompress_reader"  # attribute of the key view that carries the engine's tag


def shares_keys(config: Any) -> bool:
    """Whether some layers of a model attend to the keys of others, by its config."""
    return bool(getattr(config, "num_kv_shared_layers", None)) or "reuse" in (
        getattr(config, "kv_sharing_modes", None) or ()
    )


def leave_reader(key: torch.Tensor, reader: Reader) -> None:
    """Leaves with the keys of a layer how others shall attend to what it has attended to."""
    setattr(key, _READER, reader)


def reader_of(key: torch.Tensor) -> Reader | None:
    """How other layers attend to what the keys' layer has attended to; None before it has."""
    reader: Reader | None = getattr(key, _READER, None)
    return reader


def coming_positions(layer: CompressedLayer) -> torch.Tensor:
    """Positions of a layer's slots as the decode step that comes will attend to them: int64 ``[slots]``, -1 = free."""
    store = layer.store
    if store is None:
        raise RuntimeError("only a layer that holds tokens can decode")
    last = layer.seen - 1
    if isinstance(last, torch.Tensor):
        return store.slots.positions.index_copy(0, store.next_slot, last.expand_as(store.next_slot))
    return store.slots.positions.index_fill(0, store.next_slot, last)


def read_slots(layer: CompressedLayer, positions: torch.Tensor, call: AttentionCall) -> tuple[torch.Tensor, None]:
    """One query per sequence over the slots that a layer has just decoded into, with the token that it then evicted.

    Args:
        layer: the layer that owns the slots. The next step alone overwrites what it evicted.
        positions: what :func:`coming_positions` said before that step.
        call: the other layer's call.

    Returns:
        ``(output [batch, 1, query_heads, value_dim], None)``.

    Raises:
        UnsupportedModelError: the attention caps its logits or has learned sinks.
    """
    store, spec = layer.store, call.spec(layer.sliding_window)
    if store is None:
        raise RuntimeError("only a layer that holds tokens can be read")
    if spec.softcap is not None or spec.sinks is not None:
        raise UnsupportedModelError(
            f"{type(call.module).__name__} shares keys and has a softcap or learned sinks, which compression does not "
            "support together. Use DynamicCache for this model."
        )
    visible = positions >= 0
    if spec.sliding_window is not None:
        visible = visible & (positions > layer.seen - 1 - spec.sliding_window)
    query = call.query.reshape(store.rows, 1, -1, call.query.shape[-1])
    parts = []
    for run in store.runs:
        slots = slice(run.offset, run.offset + run.rows * run.length)
        keys, values, seen = (
            array[slots].view(run.rows, 1, run.length, -1) for array in (store.slots.keys, store.slots.values, visible)
        )
        rows = query[run.first_row : run.first_row + run.rows]
        parts.append(
            scaled_dot_product_attention(rows, keys, values, attn_mask=seen.transpose(2, 3), scale=spec.scaling)
        )
    output = torch.cat(parts)
    batch, query_heads = call.query.shape[:2]
    return output.view(batch, 1, query_heads, -1), None
