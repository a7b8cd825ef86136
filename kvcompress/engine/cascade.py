"""The cascade: when budgets are due, trims earlier layers and compacts the ones that waited; settles after the last."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch

from kvcompress.engine.compact import compact
from kvcompress.engine.events import EvictEvent, missing_positions
from kvcompress.engine.layer import CompressedLayer
from kvcompress.engine.scored import ScoredBlock, ScoredLayer
from kvcompress.engine.selection import select, select_as_torch
from kvcompress.policies.base import Policy

if TYPE_CHECKING:
    from kvcompress.engine.cache import CompressedCache

_RESERVE = 16  # free slots that rows without bound get from the start


def rows_of(policy: Policy, scores: torch.Tensor | None, budgets: list[int], available: torch.Tensor) -> list[int]:
    """Tokens that each row of a layer keeps.

    Args:
        policy: whose head allocator shares the budgets.
        scores: float32 ``[batch, kv_heads, count]``, ``-inf`` where there is no token; None where it needs none.
        budgets: tokens per head on average, for each batch row.
        available: int64 ``[batch, kv_heads]``, tokens that exist.

    Returns:
        One count per row, ``[batch * kv_heads]``.
    """
    shares = policy.head_allocator(scores, torch.tensor(budgets))
    return [int(n) for n in torch.minimum(shares, available.cpu()).flatten().tolist()]


def compress(cache: CompressedCache, entry: ScoredLayer, block: ScoredBlock) -> None:
    """Takes the next layer of a prefill in: it waits, or budgets are due and all that wait are compacted.

    Where the device has to be asked, layers that are due wait for one more layer: by then its attention and scores are
    launched, and the device has work while the host waits for the answer and launches what follows from it. The last
    layer has none after it, so there the host waits at once.
    """
    cascade = cache.cascade
    if cascade.has_waited:
        _compact_waiting(cache, cascade.allocate())
    cascade.add(entry)
    if cascade.is_due:
        cascade.start_fetch()
    if not cascade.is_due or cascade.may_wait_for_device(block):
        entry.block = block
        return
    budgets = cascade.allocate()
    _compact_waiting(cache, budgets)
    _store(cache, entry, block, budgets[-1])
    if cascade.complete:
        settle(cache, budgets)
        cascade.settled = True


def _compact_waiting(cache: CompressedCache, budgets: list[list[int]]) -> None:
    """Compacts the blocks that wait, each with its budget.

    Layers that are stored are trimmed first, and each block is let go once it has been compacted, so that memory never
    peaks.
    """
    _trim_stored(cache, budgets)
    for waiting, budget in zip(cache.cascade.scored, budgets, strict=True):
        if waiting.block is not None:
            _store(cache, waiting, waiting.block, budget)


def _store(cache: CompressedCache, entry: ScoredLayer, block: ScoredBlock, budget: list[int]) -> None:
    """Selects and compacts: a layer holds what its budget lets it keep, best first, and the window."""
    entry.block = None  # it goes when this is done
    layer, policy = entry.layer, cache.policy
    held = rows_of(policy, block.scores, budget, entry.available)
    layer.store = compact(
        block.keys,
        block.values,
        block.positions,
        block.scores,
        _choose(cache, block.scores, entry, held),
        held=held,
        window=block.window,
        spare=spare_slots(policy),
        backend=cache.backend,
    )
    layer.start_rows(held, block.window)
    entry.trimmed_to = budget
    if cache.observers:
        tell_evicted(cache, layer, block.positions, "prefill")


def _choose(cache: CompressedCache, scores: torch.Tensor, entry: ScoredLayer, held: list[int]) -> torch.Tensor:
    """Indices of the tokens that are kept, in the order in which they are stored."""
    if not cache.policy.decode_rule.storage_order:
        return select(scores, held, cache.backend)
    # A row in its own order keeps all its tokens, and they come last.
    padding = scores.shape[-1] - entry.available.to(scores.device)
    place = (padding[..., None] + torch.arange(max(held), device=scores.device)).clamp(max=scores.shape[-1] - 1)
    own_order = [cache.policy.stores_chronologically(tokens) for tokens in entry.tokens.tolist()]
    keep_order = torch.tensor(own_order, device=scores.device)[:, None, None]
    return torch.where(keep_order, place, select_as_torch(scores, max(held)))


def _trim_stored(cache: CompressedCache, budgets: list[list[int]]) -> None:
    """Cuts the stored layers to their new budgets, as soon as what they hold beyond them exceeds the slack."""
    changed = [
        (entry, budget)
        for entry, budget in zip(cache.cascade.scored, budgets, strict=True)
        if entry.trimmed_to not in (None, budget)
    ]
    excess = sum(_excess_bytes(entry.layer, budget) for entry, budget in changed)
    if cache.cascade.complete or excess > cache.cascade.slack:
        for entry, budget in changed:
            _trim(cache, entry, budget)


def _excess_bytes(layer: CompressedLayer, budget: list[int]) -> int:
    """Bytes of the chosen tokens that a layer holds beyond a budget, sequence by sequence."""
    if layer.store is None or layer.rows is None:
        return 0
    held, heads = layer.rows.held, layer.store.kv_heads
    excess = sum(max(sum(held[b * heads : (b + 1) * heads]) - heads * most, 0) for b, most in enumerate(budget))
    return excess * sum(array.nbytes for array in layer.store.slots) // sum(layer.store.lengths)


def _trim(cache: CompressedCache, entry: ScoredLayer, budget: list[int]) -> None:
    """Cuts a layer to its new budget: its tokens are stored best first, so what stays is the start of each row."""
    layer, policy = entry.layer, cache.policy
    if layer.store is None or layer.rows is None:
        return
    entry.trimmed_to = budget
    held = layer.rows.held
    scores = _held_scores(layer) if policy.head_allocator.needs_scores else None
    wanted = rows_of(policy, scores, budget, entry.available)
    kept = [min(h, w) for h, w in zip(held, wanted, strict=True)]
    if kept == held:
        return
    before = layer.store.dense(layer.store.slots.positions, -1).clone() if cache.observers else None
    layer.store.trim(held, kept)
    layer.rows.held = kept
    if before is not None:
        tell_evicted(cache, layer, before, "cascade")


def settle(cache: CompressedCache, budgets: list[list[int]]) -> None:
    """After the last layer: fixes how far each row may grow, and writes the budgets into the statistics."""
    layer_limits = cache.cascade.limits(budgets)
    for entry, budget, limit in zip(cache.cascade.scored, budgets, layer_limits, strict=True):
        layer = entry.layer
        if layer.store is None or layer.rows is None:
            continue
        heads = layer.store.kv_heads
        limits = _row_limits(cache.policy, layer.rows.held, budget, limit, heads)
        capacity = [_capacity(cache.policy, layer, most) for most in limits]
        present = entry.present.tolist()
        window = [min(w, present[row // heads]) for row, w in enumerate(layer.rows.window)]
        offered = entry.available.flatten().tolist()
        layer.evicted |= any(held < n for held, n in zip(layer.rows.held, offered, strict=True))
        layer.settle(capacity, window)
        layer.unstarted = min(entry.tokens.tolist()) == 0
        if layer.statistics is not None:
            # The authors' code counts the budget that decoding enforces, even where prefill evicted nothing.
            final = limit if cache.policy.decode_rule.storage_order else budget
            layer.statistics = replace(layer.statistics, budget=torch.tensor(final))


def spare_slots(policy: Policy) -> int:
    """Free slots that a row gets beside its tokens."""
    if policy.decode_rule.grows:
        return _RESERVE
    return policy.window_size + 1 if policy.decode_rule.keep_prompt else 1


def tell_evicted(
    cache: CompressedCache,
    layer: CompressedLayer,
    before: torch.Tensor,
    stage: Literal["prefill", "cascade", "decode"],
) -> None:
    """Tells observers which tokens a layer no longer has (int64 positions ``[batch, kv_heads, n]`` before)."""
    if layer.store is None:
        return
    evicted = missing_positions(before, layer.store.dense(layer.store.slots.positions, -1))
    if evicted.shape[-1]:
        event = EvictEvent(layer_idx=layer.layer_idx, stage=stage, evicted=evicted)
        for observer in cache.observers:
            observer.on_evict(event)


def _row_limits(
    policy: Policy, held: list[int], budget: list[int], limit: list[int | None], heads: int
) -> list[int | None]:
    """How far each row's tokens may grow, given how far its layer's may: ``[batch * kv_heads]``.

    Where heads hold different numbers, each keeps its own and gains what the layer gains: a poor head that grew to the
    layer's average would take what a rich head already has.
    """
    limits: list[int | None] = []
    for row, count in enumerate(held):
        most = limit[row // heads]
        shared = most is None or not policy.head_allocator.needs_scores
        limits.append(most if shared else count + (most or 0) - budget[row // heads])
    return limits


def _capacity(policy: Policy, layer: CompressedLayer, limit: int | None) -> int | None:
    """Slots that a row may reach, given how far its tokens may grow; None for no bound."""
    bounds = []
    if limit is not None and not policy.decode_rule.grows:
        bounds.append(limit + policy.window_size)
    if layer.sliding_window is not None:  # the token that leaves the window always makes room for the new one
        bounds.append(layer.sliding_window)
    return min(bounds) + spare_slots(policy) if bounds else None


def _held_scores(layer: CompressedLayer) -> torch.Tensor:
    """Scores of a layer's chosen tokens, ``[batch, kv_heads, most]``, ``-inf`` where a row has fewer."""
    if layer.store is None or layer.rows is None:
        raise RuntimeError("only a stored layer has scores")
    scores = layer.store.dense(layer.store.slots.scores, float("-inf"))
    held = torch.tensor(layer.rows.held, device=scores.device).view(*scores.shape[:2], 1)
    place = torch.arange(scores.shape[-1], device=scores.device)
    return scores.masked_fill(place >= held, float("-inf"))
