"""Step 5, *attend*: queries over the slots of a layer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from kvcompress.engine.attention import AttentionCall
from kvcompress.engine.cascade import tell_evicted
from kvcompress.engine.events import DecodeEvent
from kvcompress.engine.layer import CompressedLayer
from kvcompress.engine.masks import block_mask
from kvcompress.engine.sharing import Reader, coming_positions, read_slots
from kvcompress.engine.store import SlotStore
from kvcompress.engine.update import attend_in_storage_order, new_token_score
from kvcompress.kernels.window_scores.reference import AttentionSpec

if TYPE_CHECKING:
    from kvcompress.engine.cache import CompressedCache

_BLOCK_ELEMENTS = 1 << 24  # logits of one block of queries, over all heads: 64 MiB in float32


def attend_token(
    cache: CompressedCache, layer: CompressedLayer, call: AttentionCall
) -> tuple[tuple[torch.Tensor, None], Reader | None]:
    """One new token per sequence: attends over the slots, in place, and picks the next victim.

    Returns:
        ``((output [batch, 1, query_heads, value_dim], None), reader)``, the reader for layers that share the keys; None
        in a model without any.
    """
    layer.make_room()
    store = layer.store
    if store is None:
        raise RuntimeError("only a layer that holds tokens can decode")
    before = store.dense(coming_positions(layer), -1) if cache.observers else None
    reader = partial(read_slots, layer, coming_positions(layer)) if cache.shares_keys else None
    with torch.no_grad():
        if cache.policy.decode_rule.storage_order:
            output, probability = attend_in_storage_order(cache.policy, layer, store, call)
        else:
            output, probability = _attend_and_update(cache, layer, store, call)
    if before is not None:
        _tell(cache, layer, call, before, probability)
    batch, query_heads = call.query.shape[:2]
    return (output.view(batch, 1, query_heads, -1), None), reader


def _attend_and_update(
    cache: CompressedCache, layer: CompressedLayer, store: SlotStore, call: AttentionCall
) -> tuple[torch.Tensor, torch.Tensor]:
    policy, rows = cache.policy, store.rows
    row_start = layer.row_start if policy.sink_tokens else None
    output, probability = cache.decode_attend(
        call.query.reshape(rows, -1, call.query.shape[-1]),
        call.key.reshape(rows, -1),
        call.value.reshape(rows, -1),
        store.slots,
        store.next_slot,
        store.row_offsets,
        store.runs,
        layer.seen - 1,
        spec=call.spec(layer.sliding_window),
        eviction=cache.eviction,
        new_score=new_token_score(policy, layer, store, call),
        row_start=None if row_start is None else row_start.repeat_interleave(store.kv_heads),
        prompt_end=layer.prompt_end,
        full=layer.full,
        arrivals=store.arrivals if cache.one_launch else None,
    )
    return output, probability


def attend_block(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    within: torch.Tensor,
    query_positions: torch.Tensor,
    spec: AttentionSpec,
) -> torch.Tensor:
    """Several new tokens after held ones: ``[held | new]``, a block of queries at a time.

    Args:
        query: ``[batch, query_heads, queries, head_dim]``.
        keys: ``[batch, kv_heads, tokens, head_dim]``, the new ones last.
        values: ``[batch, kv_heads, tokens, value_dim]``.
        positions: int64 ``[batch, kv_heads, tokens]``, -1 for no token.
        within: bool ``[batch, queries, new tokens]``, what the queries see of the new tokens.
        query_positions: int64 ``[queries]``.
        spec: scaling, softcap, sinks, sliding window.

    Returns:
        ``[batch, queries, query_heads, value_dim]``.
    """
    batch, query_heads, queries, head_dim = query.shape
    heads, tokens = keys.shape[1:3]
    group, held = query_heads // heads, tokens - within.shape[2]
    compute = torch.float64 if query.dtype == torch.float64 else torch.float32
    grouped = query.view(batch, heads, group, queries, head_dim)
    keys, values = keys.to(compute), values.to(compute)
    size = max(1, _BLOCK_ELEMENTS // (batch * query_heads * tokens))
    outputs = []
    for start in range(0, queries, size):
        rows = slice(start, min(start + size, queries))
        past = (positions[:, :, None, :held] >= 0).expand(-1, -1, query_positions[rows].numel(), -1)
        if spec.sliding_window is not None:
            distance = query_positions[rows, None] - positions[:, :, None, :held]
            past = past & (distance < spec.sliding_window)
        new = within[:, None, rows].expand(-1, heads, -1, -1)
        visible = torch.cat([past, new], dim=-1)[:, :, None]
        part = grouped[:, :, :, rows].flatten(2, 3).to(compute) * spec.scaling
        logits = torch.matmul(part, keys.transpose(-1, -2)).view(batch, heads, group, -1, tokens)
        p = _probabilities(logits, visible, spec).flatten(2, 3)
        outputs.append(torch.matmul(p, values).to(query.dtype).view(batch, query_heads, -1, values.shape[-1]))
    output = torch.cat(outputs, dim=2)
    return output.transpose(1, 2).contiguous()


def attend_materialised(call: AttentionCall) -> torch.Tensor:
    """A first block by the plain formula, matrix and all: what ``CakeReference`` needs to agree to the last bit.

    Fused attention rounds differently, and near-ties between scores then fall differently in later layers.

    Returns:
        ``[batch, queries, query_heads, value_dim]``.
    """
    group = call.query.shape[1] // call.key.shape[1]
    keys, values = call.key.repeat_interleave(group, dim=1), call.value.repeat_interleave(group, dim=1)
    logits = torch.matmul(call.query, keys.transpose(2, 3)) * call.spec(None).scaling
    visible = block_mask(call.mask, call.query.shape[0], call.query.shape[2], call.query.device)
    logits = logits.masked_fill_(~visible[:, None], torch.finfo(logits.dtype).min)
    p = torch.softmax(logits, dim=-1, dtype=torch.float32).to(call.query.dtype)
    return torch.matmul(p, values).transpose(1, 2).contiguous()


def _probabilities(logits: torch.Tensor, visible: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """Softmax over ``[batch, kv_heads, group, queries, tokens]``; a padding query, which sees nothing, gets zeros."""
    if spec.softcap is not None:
        logits = logits.div_(spec.softcap).tanh_().mul_(spec.softcap)
    logits = logits.masked_fill_(~visible, torch.finfo(logits.dtype).min)
    if spec.sinks is None:
        return torch.softmax(logits, dim=-1)
    heads, group = logits.shape[1:3]
    sinks = spec.sinks.to(logits.dtype).view(1, heads, group, 1, 1).expand(*logits.shape[:-1], 1)
    return torch.softmax(torch.cat([logits, sinks], dim=-1), dim=-1)[..., :-1]


def _tell(
    cache: CompressedCache, layer: CompressedLayer, call: AttentionCall, before: torch.Tensor, probability: torch.Tensor
) -> None:
    store = layer.store
    if store is None:
        return
    event = DecodeEvent(
        layer_idx=layer.layer_idx,
        position=int(layer.seen) - 1,
        query=call.query,
        keys=store.dense(store.slots.keys, 0.0),
        values=store.dense(store.slots.values, 0.0),
        positions=before,
        probability=store.dense(probability, 0.0),
        spec=call.spec(layer.sliding_window),
    )
    for observer in cache.observers:
        observer.on_decode(event)
    tell_evicted(cache, layer, before, "decode")
