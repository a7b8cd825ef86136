"""The dtype in which a layer attends and stores, also where ``torch.autocast`` mixes several."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from kvcompress.engine.attention import AttentionCall
    from kvcompress.engine.store import SlotStore


def attention_dtype(call: AttentionCall, store: SlotStore | None) -> torch.dtype:
    """The one dtype for queries, keys and values of a layer's next tokens.

    Args:
        call: the layer's attention as it was called. Under autocast a model in float32 brings keys in float32 (their
            rotary embedding is not cast) and values in 16 bits.
        store: what the layer holds; None: nothing.

    Returns:
        That of the store; without one, under autocast, what ``scaled_dot_product_attention`` would cast to (it leaves
        float64 alone); else the query's.
    """
    if store is not None:
        return store.slots.keys.dtype
    device = call.query.device.type
    if call.query.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return call.query.dtype


def own_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context in which the engine computes in the precision that it names: autocast would cast its products, too."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
