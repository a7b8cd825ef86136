"""Step 1, *score*: what a scorer is given and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch

from kvcompress.engine.store import SlotStore
from kvcompress.kernels.dispatch import operation
from kvcompress.kernels.window_scores.reference import AttentionSpec, Statistic, WindowScores

_MOST_QUERIES = 128  # the most that the kernel behind ``window_scores`` holds at once


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreInputs:
    """One layer's block, in chronological order; padding and evicted tokens leave places without a token.

    Attributes:
        layer_idx: index of the layer in the model.
        module: the attention module (for scorers that need its weights).
        query: ``[batch, query_heads, queries, head_dim]``, all queries of the new block.
        keys: ``[batch, kv_heads, tokens, head_dim]``, what the layer held and the new block.
        values: ``[batch, kv_heads, tokens, value_dim]``.
        positions: int64 ``[batch, kv_heads, tokens]`` absolute positions, -1 where there is no token; None: ``0..``.
        last_position: absolute position of the last token.
        row_start: int64 ``[batch]`` position of each row's first token; None: zeros.
        valid_queries: bool ``[batch, queries]``, False for padding; None: all valid.
        window: tokens of the window, ``min(window_size, tokens)``.
        scored: tokens to score, ``tokens - window``.
        spec: what the attention does to its logits.
        backend: ``"torch"`` or ``"triton"``.
        log_sum_exp: float32 ``[batch, query_heads, queries]`` of the block's logits, where the attention gave it.
    """

    layer_idx: int
    module: torch.nn.Module
    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor | None
    last_position: int
    row_start: torch.Tensor | None
    valid_queries: torch.Tensor | None
    window: int
    scored: int
    spec: AttentionSpec
    backend: str
    log_sum_exp: torch.Tensor | None = None

    def token_positions(self) -> torch.Tensor:
        """Absolute positions of the scored tokens, int64 ``[batch or 1, kv_heads or 1, scored]``, -1 for none."""
        if self.positions is None:
            return torch.arange(self.scored, device=self.keys.device)[None, None]
        return self.positions[:, :, : self.scored]

    def window_scores(
        self,
        emit: tuple[Statistic, ...] = ("score",),
        *,
        gamma: float = 0.0,
        pool_size: int = 1,
        queries: int | None = None,
    ) -> WindowScores:
        """Attention statistics of the block's last queries.

        Args:
            emit: which statistics per key are wanted.
            gamma: weight of the variance in the score.
            pool_size: width of the pooling of the score.
            queries: how many of the last queries observe, if the block has as many; None: those of the window.
        """
        last = self.query.shape[2]
        first = max(last - (self.window if queries is None else queries), 0)
        return self._statistics_of(slice(first, last), emit, gamma, pool_size)

    def attention_sums(self) -> torch.Tensor:
        """Attention that each scored token gets from ALL queries of the block, added up; mean over the query group.

        Goes through the queries in chunks, each over the keys up to its own last query: no matrix of queries times
        keys is ever held.

        Returns:
            float32 ``[batch, kv_heads, scored]``.
        """
        batch, heads = self.keys.shape[:2]
        sums = torch.zeros(batch, heads, self.scored, device=self.keys.device)
        for start in range(0, self.query.shape[2], _MOST_QUERIES):
            chunk = slice(start, min(start + _MOST_QUERIES, self.query.shape[2]))
            mean = cast("torch.Tensor", self._statistics_of(chunk, ("mean",)).mean).float()
            if self.valid_queries is None:
                count: int | torch.Tensor = chunk.stop - start
            else:
                count = self.valid_queries[:, chunk].sum(1)[:, None, None]
            sums[..., : mean.shape[-1]] += mean * count
        return sums

    def observers(self) -> torch.Tensor:
        """How many queries of the block see each scored token, int64 ``[batch or 1, kv_heads or 1, scored]``."""
        queries, device = self.query.shape[2], self.keys.device
        valid = torch.ones(1, queries, dtype=torch.bool, device=device)
        valid = valid if self.valid_queries is None else self.valid_queries
        before = torch.nn.functional.pad(valid.cumsum(1), (1, 0))  # [B, Q + 1], valid queries before the i-th
        first = self.token_positions() - (self.last_position - queries + 1)
        first, end = first.clamp(0, queries), torch.full_like(first, queries)
        if self.spec.sliding_window is not None:
            end = (self.token_positions() + self.spec.sliding_window - (self.last_position - queries + 1)).clamp(
                0, queries
            )
        rows = max(before.shape[0], first.shape[0])
        before = before[:, None].expand(rows, first.shape[1], -1)
        first, end = (place.expand(rows, -1, -1) for place in (first, end))
        return before.gather(-1, end) - before.gather(-1, first)

    def _statistics_of(
        self, chunk: slice, emit: tuple[Statistic, ...], gamma: float = 0.0, pool_size: int = 1
    ) -> WindowScores:
        """Statistics of the attention that the queries of ``chunk`` pay."""
        queries = self.query.shape[2]
        later = queries - chunk.stop
        keys, scored, positions = self.keys, self.scored, self.positions
        # In a first block a key's place is its position: a chunk sees none of the keys after its last query. Later
        # blocks are sorted with free places first, and the mask has to say it.
        if later and queries == keys.shape[2]:
            keys = keys[:, :, :-later]
            positions = None if positions is None else positions[:, :, :-later]
            scored = min(scored, keys.shape[2])
        scores: WindowScores = operation("window_scores", self.backend)(
            self.query[:, :, chunk],
            keys,
            spec=self.spec,
            scored=scored,
            emit=emit,
            gamma=gamma,
            pool_size=pool_size,
            positions=positions,
            last_position=self.last_position - later,
            valid_queries=None if self.valid_queries is None else self.valid_queries[:, chunk],
            log_sum_exp=None if self.log_sum_exp is None else self.log_sum_exp[:, :, chunk],
        )
        return scores


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """A token that is being generated, before it is stored: what a scorer's ``score_new`` is given.

    Attributes:
        key: ``[batch, kv_heads, 1, head_dim]``, with rotary embedding.
        positions: int64 ``[batch, kv_heads, 1]``, absolute.
        row_start: int64 ``[batch]`` position of each row's first token; None: zeros.
        layer_idx: index of the layer in the model.
        store: what the layer holds.
    """

    key: torch.Tensor
    positions: torch.Tensor
    row_start: torch.Tensor | None
    layer_idx: int
    store: SlotStore

    def held_keys(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys ``[batch, kv_heads, slots, head_dim]`` and positions ``[batch, kv_heads, slots]``, -1 for a free slot.

        A view where all rows are equally long, a copy where they are not.
        """
        slots = self.store.slots
        return self.store.dense(slots.keys, 0), self.store.dense(slots.positions, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerScores:
    """What a scorer returns.

    Attributes:
        token_scores: float32 ``[batch, kv_heads, scored]``, higher = keep.
        entropy: float32 ``[batch]``, attention entropy in nats, or None.
        variance: float32 ``[batch]``, attention variance, or None.
    """

    token_scores: torch.Tensor
    entropy: torch.Tensor | None = None
    variance: torch.Tensor | None = None
