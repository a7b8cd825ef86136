"""A block of several tokens: attend, then score; the cascade does the rest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from kvcompress.engine.attend import attend_block, attend_materialised
from kvcompress.engine.attention import AttentionCall
from kvcompress.engine.cascade import compress
from kvcompress.engine.events import PrefillEvent
from kvcompress.engine.guards import check_continues
from kvcompress.engine.layer import CompressedLayer
from kvcompress.engine.layer_statistics import LayerStatistics
from kvcompress.engine.log_sum_exp import overhear_log_sum_exp
from kvcompress.engine.masks import block_mask, last_query_mask, token_mask
from kvcompress.engine.precision import own_precision
from kvcompress.engine.score import LayerScores, ScoreInputs
from kvcompress.engine.scored import ScoredBlock, ScoredLayer
from kvcompress.engine.selection import mark_scores
from kvcompress.engine.sharing import Reader

if TYPE_CHECKING:
    from kvcompress.engine.cache import CompressedCache

_MOST_MATERIALISED = 4096  # tokens up to which CakeReference's prefill attends by the plain formula


@dataclass(frozen=True, slots=True)
class Block:
    """What a layer has after attending a block, chronological; padding and evicted tokens leave places without one.

    Attributes:
        query: ``[batch, query_heads, queries, head_dim]``.
        keys: ``[batch, kv_heads, tokens, head_dim]``.
        values: ``[batch, kv_heads, tokens, value_dim]``.
        positions: int64 ``[batch, kv_heads, tokens]``, -1 for no token; None: ``0..``, all there.
        valid_queries: bool ``[batch, queries]``; None: all.
        row_start: int64 ``[batch]``, position of each row's first token; None: zeros.
        log_sum_exp: float32 ``[batch, query_heads, queries]`` of the logits, where the attention has given it.
        attended: int64 ``[batch, kv_heads, tokens]``, positions including those that have left the sliding window for
            the last query, but not for all; None: ``positions``.
    """

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor | None
    valid_queries: torch.Tensor | None
    row_start: torch.Tensor | None
    log_sum_exp: torch.Tensor | None = None
    attended: torch.Tensor | None = None

    def filled_positions(self) -> torch.Tensor:
        """Positions ``[batch, kv_heads, tokens]``, written out."""
        if self.positions is not None:
            return self.positions
        tokens = torch.arange(self.keys.shape[2], device=self.keys.device)
        return tokens.expand(*self.keys.shape[:3])


def prefill(
    cache: CompressedCache, layer: CompressedLayer, call: AttentionCall
) -> tuple[tuple[torch.Tensor, torch.Tensor | None], Reader]:
    """Attends a block and compresses the layer.

    Returns:
        ``((output, weights), reader)``, the reader for layers that share the keys.
    """
    reader: Reader
    if layer.store is None:
        output, log_sum_exp = _attend_first(cache, call)
        block = _first_block(layer, call, log_sum_exp)
        reader = AttentionCall.run_base
    else:
        if layer is cache.compressed_layers[0]:
            check_continues(layer, call)
        with own_precision(call.query.device):
            output, block, reader = _continue(layer, call)
    with torch.no_grad(), own_precision(call.query.device):
        _score(cache, layer, call, block)
    return output, reader


def _attend_first(
    cache: CompressedCache, call: AttentionCall
) -> tuple[tuple[torch.Tensor, torch.Tensor | None], torch.Tensor | None]:
    """Attends a first block; also returns the log-sum-exp of its logits, where the attention computes it anyway."""
    if cache.policy.decode_rule.storage_order and call.key.shape[2] <= _MOST_MATERIALISED:
        return (attend_materialised(call), None), None
    return overhear_log_sum_exp(call.run_base, call.query.shape[:3])


def _first_block(layer: CompressedLayer, call: AttentionCall, log_sum_exp: torch.Tensor | None) -> Block:
    batch, heads, tokens, _ = call.key.shape
    device = call.key.device
    visible = last_query_mask(call.mask, batch, tokens, device)
    exists = visible if layer.sliding_window is None else token_mask(call.mask, tokens, batch, device)
    if exists is not None:
        layer.note_padding(exists)
    if layer.sliding_window is not None and tokens > layer.sliding_window:
        recent = torch.arange(tokens, device=device) >= tokens - layer.sliding_window
        visible = recent.expand(batch, tokens) if visible is None else visible & recent
    keys, values = call.key.detach(), call.value.detach()
    if visible is None:
        if call.spec(None).sinks is not None:  # fused attentions add learned sinks after the fact
            log_sum_exp = None
        return Block(call.query.detach(), keys, values, None, None, None, log_sum_exp)
    attended = None
    if layer.sliding_window is not None:
        attended = _positions(exists if exists is not None else torch.ones_like(visible), heads)
    positions = _positions(visible, heads)
    return Block(call.query.detach(), keys, values, positions, visible, layer.row_start, attended=attended)


def _positions(visible: torch.Tensor, heads: int) -> torch.Tensor:
    """Places of a first block, -1 where not visible: int64 ``[batch, heads, tokens]`` of bool ``[batch, tokens]``."""
    places = torch.where(visible, torch.arange(visible.shape[1], device=visible.device), -1)
    return places[:, None].expand(-1, heads, -1)


def _continue(layer: CompressedLayer, call: AttentionCall) -> tuple[tuple[torch.Tensor, None], Block, Reader]:
    """Attends a block after tokens that are held: ``[held tokens | causal new block]``."""
    if layer.store is None:
        raise RuntimeError("only a layer that holds tokens can continue")
    batch, heads, queries, _ = call.key.shape
    seen = int(layer.seen)
    keys, values, positions = layer.store.chronological()
    new_positions = torch.arange(seen - queries, seen, device=keys.device)
    within = block_mask(call.mask, batch, queries, keys.device)
    real = within[:, -1] if layer.sliding_window is None else within.diagonal(dim1=1, dim2=2)
    if call.mask is not None:
        layer.note_padding(real)
    new = torch.where(real, new_positions, -1)[:, None].expand(batch, heads, queries)
    keys = torch.cat([keys, call.key.detach()], dim=2)
    values = torch.cat([values, call.value.detach()], dim=2)
    positions = torch.cat([positions, new], dim=2)
    reader = partial(_attend_held, keys, values, positions, within, new_positions, layer.sliding_window)
    output = reader(call)
    attended = None
    if layer.sliding_window is not None:
        attended = positions
        positions = positions.masked_fill(positions <= seen - 1 - layer.sliding_window, -1)
    order = positions.argsort(dim=-1, stable=True)
    keys = keys.gather(2, order[..., None].expand(*order.shape, keys.shape[-1]))
    values = values.gather(2, order[..., None].expand(*order.shape, values.shape[-1]))
    valid = None if call.mask is None else real
    attended = None if attended is None else attended.gather(-1, order)
    block = Block(
        call.query.detach(), keys, values, positions.gather(-1, order), valid, layer.row_start, attended=attended
    )
    return output, block, reader


def _attend_held(
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    within: torch.Tensor,
    new_positions: torch.Tensor,
    sliding_window: int | None,
    call: AttentionCall,
) -> tuple[torch.Tensor, None]:
    """Attends to held tokens and a new block with the queries of all new tokens, or of the last."""
    queries = slice(-call.query.shape[2], None)
    with own_precision(call.query.device):
        spec = call.spec(sliding_window)
        output = attend_block(call.query, keys, values, positions, within[:, queries], new_positions[queries], spec)
    return output, None


def _score(cache: CompressedCache, layer: CompressedLayer, call: AttentionCall, block: Block) -> None:
    """Scores a layer's block, tells observers, and hands the layer to the cascade."""
    policy, tokens = cache.policy, block.keys.shape[2]
    window = min(policy.window_size, tokens)
    if layer.sliding_window is not None:
        window = min(window, layer.sliding_window)
    inputs = ScoreInputs(
        layer_idx=layer.layer_idx,
        module=call.module,
        query=block.query,
        keys=block.keys,
        values=block.values,
        positions=block.positions,
        last_position=int(layer.seen) - 1,
        row_start=block.row_start,
        valid_queries=block.valid_queries,
        window=window,
        scored=tokens - window,
        spec=call.spec(layer.sliding_window),
        backend=cache.backend,
        log_sum_exp=block.log_sum_exp,
    )
    scores = policy.scorer(inputs)
    if cache.observers:
        event = PrefillEvent(
            layer_idx=layer.layer_idx, query=block.query, keys=block.keys, values=block.values,
            positions=block.filled_positions(), scores=scores, spec=inputs.spec,
            attended=block.filled_positions() if block.attended is None else block.attended,
        )  # fmt: skip
        for observer in cache.observers:
            observer.on_prefill(event)
    layer.statistics = _statistics(cache, scores)
    scored_positions = None if block.positions is None else block.positions[..., : inputs.scored]
    scored_block = ScoredBlock(
        keys=block.keys,
        values=block.values,
        positions=block.filled_positions(),
        scores=mark_scores(scores.token_scores, scored_positions, block.row_start, policy.sink_tokens),
        window=window,
    )
    entry = _scored_layer(layer, block, inputs, scores)
    entry.device_ladder = cache.cascade.ladder(scored_block.scores, int(layer.seen))
    compress(cache, entry, scored_block)


def _scored_layer(layer: CompressedLayer, block: Block, inputs: ScoreInputs, scores: LayerScores) -> ScoredLayer:
    batch, heads, tokens = block.keys.shape[:3]
    if block.positions is None:
        available = torch.full((batch, heads), inputs.scored)
        present = torch.full((batch,), tokens)
    else:
        exists = block.positions >= 0
        available = exists[..., : inputs.scored].sum(-1)
        present = exists.sum(-1).amax(1)
    seen = torch.full_like(present, int(layer.seen))
    return ScoredLayer(
        layer=layer,
        device_entropy=scores.entropy,
        device_variance=scores.variance,
        available=available,
        present=present,
        tokens=seen if layer.padding is None else seen - layer.padding,
    )


def _statistics(cache: CompressedCache, scores: LayerScores) -> LayerStatistics:
    preference = None
    if scores.entropy is not None and scores.variance is not None:
        preference = cache.policy.layer_allocator.preference(scores.entropy, scores.variance)
    return LayerStatistics(
        budget=torch.zeros(scores.token_scores.shape[0], dtype=torch.int64),
        preference=preference,
        entropy=scores.entropy,
        variance=scores.variance,
        token_scores=scores.token_scores if cache.keep_statistics else None,
    )
