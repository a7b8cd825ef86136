"""The cascade: trims earlier layers as later ones come in, and settles all of them after the last."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch

from kvcompress.engine.events import EvictEvent, missing_positions
from kvcompress.engine.layer import CompressedLayer
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


def trim_earlier(cache: CompressedCache, budgets: list[list[int]]) -> None:
    """Cuts the layers before the newest one down to their new budgets."""
    for entry, budget in zip(cache.cascade.scored[:-1], budgets[:-1], strict=True):
        layer = entry.layer
        if layer.store is None or layer.rows is None or entry.trimmed_to == budget:
            continue
        entry.trimmed_to = budget
        held = layer.rows.held
        scores = _held_scores(layer) if cache.policy.head_allocator.needs_scores else None
        wanted = rows_of(cache.policy, scores, budget, entry.available)
        kept = [min(h, w) for h, w in zip(held, wanted, strict=True)]
        if kept == held:
            continue
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
