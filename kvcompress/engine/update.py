"""Step 6, *update*: what a decode step leaves behind beyond the general rule.

The general rule (running scores, next victim) is part of the ``decode_attend`` operation. Here are the two
additions: the
stored score of a new token, and the authors' rule of CAKE, which depends on the order in which tokens are stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from kvcompress.engine.attention import AttentionCall
from kvcompress.engine.score import NewToken
from kvcompress.engine.selection import select_as_torch
from kvcompress.engine.store import SlotStore
from kvcompress.kernels.decode_attend.reference import Run, slot_view, write_new_token
from kvcompress.kernels.window_scores.reference import AttentionSpec, pool
from kvcompress.policies.base import Policy
from kvcompress.policies.protocols import NewTokenScorer

if TYPE_CHECKING:
    from kvcompress.engine.layer import CompressedLayer


@dataclass(slots=True)
class StorageOrder:
    """The order in which the authors' code would store each row; only this order moves, never a key or a value.

    Attributes:
        order: int64 ``[rows, longest]``, place in the row of the i-th stored token; then the free places.
        filled: tokens of each row.
    """

    order: torch.Tensor
    filled: list[int]

    @classmethod
    def start(cls, store: SlotStore, filled: list[int]) -> StorageOrder:
        """The order after prefill: best first, then the window, then free places."""
        # A row shorter than its window has free places before the window's tokens, too.
        free = store.dense(store.slots.positions, -1).flatten(0, 1) < 0
        return cls(free.to(torch.int8).argsort(dim=-1, stable=True), filled)

    def first_free(self) -> torch.Tensor:
        """Place in each row that the next token takes, int64 ``[rows]``."""
        return self.order.gather(1, torch.tensor(self.filled, device=self.order.device)[:, None]).flatten()

    def pick(self, rows: list[int]) -> StorageOrder:
        """The given rows, in the given order."""
        return StorageOrder(self.order[torch.tensor(rows, device=self.order.device)], [self.filled[r] for r in rows])

    def widen(self, longest: int) -> None:
        """Adds places, at the end, of rows that have grown."""
        extra = torch.arange(self.order.shape[1], longest, device=self.order.device)
        self.order = torch.cat([self.order, extra.repeat(self.order.shape[0], 1)], dim=1)


def new_token_score(
    policy: Policy, layer: CompressedLayer, store: SlotStore, call: AttentionCall
) -> torch.Tensor | None:
    """Stored score of the new token, float32 ``[rows]``, for rules that evict by stored scores; else None."""
    if policy.decode_rule.order != "stored":
        return None
    position = layer.seen - 1
    positions = torch.zeros(store.batch, store.kv_heads, 1, dtype=torch.int64, device=call.key.device) + position
    new = NewToken(key=call.key, positions=positions, row_start=layer.row_start, layer_idx=layer.layer_idx, store=store)
    return cast("NewTokenScorer", policy.scorer).score_new(new).flatten()


def attend_in_storage_order(
    policy: Policy, layer: CompressedLayer, store: SlotStore, call: AttentionCall
) -> tuple[torch.Tensor, torch.Tensor]:
    """A decode step by the authors' rule of CAKE.

    The new token is appended; attention sees all; when a row is longer than budget + window, the current query's
    probabilities of all but the last ``window`` stored tokens are pooled over STORAGE order, the best ``budget`` stay,
    best first, and the rest goes.

    Returns:
        ``(output [rows, group, value_dim], probability [slots])``.

    Source:
        The official code of CAKE (arXiv 2503.12491); quirks in docs/numerics.md.
    """
    if layer.rows is None:
        raise RuntimeError("only a stored layer can decode")
    if layer.order is None:
        layer.order = StorageOrder.start(store, layer.rows.filled_at_prefill())
        store.next_slot = store.row_offsets[:-1] + layer.order.first_free()
    if layer.order.order.shape[1] < max(store.lengths):
        layer.order.widen(max(store.lengths))
    rows = store.rows
    query = call.query.reshape(rows, -1, 1, call.query.shape[-1])
    write_new_token(
        store.slots, store.next_slot, call.key.reshape(rows, -1), call.value.reshape(rows, -1), layer.seen - 1, None
    )
    outputs, means = [], []
    for entry in range(store.batch):
        first = entry * store.kv_heads
        run = Run(first, store.kv_heads, int(sum(store.lengths[:first])), store.lengths[first])
        output, probability = _attend_stored(query, layer.order, store, run, call.spec(None))
        outputs.append(output)
        means.append(_in_slots(probability.mean(1).float(), layer.order, run))
        _reorder(policy, layer, layer.order, store, run, probability)
    return torch.cat(outputs), torch.cat(means)


def _attend_stored(
    query: torch.Tensor, state: StorageOrder, store: SlotStore, run: Run, spec: AttentionSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of one sequence in storage order, operation by operation as the authors' code does it on the CPU.

    Returns:
        ``(output [rows, group, value_dim], probability [rows, group, tokens] in storage order)``.
    """
    rows = slice(run.first_row, run.first_row + run.rows)
    tokens = state.filled[run.first_row] + 1
    order = state.order[rows, :tokens, None]
    group = query.shape[1]
    keys = slot_view(store.slots.keys, run)
    values = slot_view(store.slots.values, run)
    # Repeated for each query head, not broadcast: the matrix product then rounds as it does in the authors' code.
    keys = keys.gather(1, order.expand(-1, -1, keys.shape[-1])).repeat_interleave(group, dim=0)
    values = values.gather(1, order.expand(-1, -1, values.shape[-1])).repeat_interleave(group, dim=0)
    logits = torch.matmul(query[rows].flatten(0, 1), keys.transpose(-1, -2)) / (1 / spec.scaling)
    probability = torch.softmax(logits, dim=-1, dtype=torch.float32).to(query.dtype)
    output = torch.matmul(probability, values)
    return output.view(run.rows, group, -1), probability.view(run.rows, group, -1)


def _in_slots(mean: torch.Tensor, state: StorageOrder, run: Run) -> torch.Tensor:
    """Probabilities ``[rows, tokens]`` in storage order, put back where their slots are: ``[rows * length]``."""
    rows = slice(run.first_row, run.first_row + run.rows)
    slots = mean.new_zeros(run.rows, run.length)
    return slots.scatter_(1, state.order[rows, : mean.shape[1]], mean).view(-1)


def _reorder(
    policy: Policy, layer: CompressedLayer, state: StorageOrder, store: SlotStore, run: Run, probability: torch.Tensor
) -> None:
    """Moves the order of one sequence's rows and frees what is dropped."""
    if layer.rows is None:
        return
    rows = slice(run.first_row, run.first_row + run.rows)
    order = state.order[rows, : run.length].clone()
    tokens = state.filled[run.first_row] + 1
    capacity = layer.rows.capacity[run.first_row]
    budget = tokens if capacity is None else capacity - policy.window_size - 1
    candidates = tokens - policy.window_size
    if tokens > budget + policy.window_size:
        scores = pool(probability[..., :candidates], 5).mean(1)
        best = select_as_torch(scores, budget)
        dropped = torch.ones_like(order[:, :candidates], dtype=torch.bool).scatter_(1, best, False)
        gone = order[:, :candidates][dropped].view(run.rows, -1)
        order = torch.cat([order.gather(1, best), order[:, candidates:tokens], gone, order[:, tokens:]], dim=1)
        start = store.row_offsets[rows][:, None]
        store.slots.positions[(start + gone).flatten()] = -1
        tokens = budget + policy.window_size
    state.order[rows, : run.length] = order
    for row in range(run.first_row, run.first_row + run.rows):
        state.filled[row] = tokens
    store.next_slot[rows] = store.row_offsets[rows] + order[:, tokens]
