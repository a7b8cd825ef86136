"""Step 1, *score*: what a scorer is given and what it returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvcompress.kernels.dispatch import operation
from kvcompress.kernels.window_scores.reference import AttentionSpec, Statistic, WindowScores


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
        self, emit: tuple[Statistic, ...] = ("score",), *, gamma: float = 0.0, pool_size: int = 1
    ) -> WindowScores:
        """Attention statistics of the window, ``min(window, queries)`` queries.

        Args:
            emit: which statistics per key are wanted.
            gamma: weight of the variance in the score.
            pool_size: width of the pooling of the score.
        """
        queries = min(self.window, self.query.shape[2])
        scores: WindowScores = operation("window_scores", self.backend)(
            self.query[:, :, -queries:],
            self.keys,
            spec=self.spec,
            scored=self.scored,
            emit=emit,
            gamma=gamma,
            pool_size=pool_size,
            positions=self.positions,
            last_position=self.last_position,
            valid_queries=None if self.valid_queries is None else self.valid_queries[:, -queries:],
            log_sum_exp=None if self.log_sum_exp is None else self.log_sum_exp[:, :, -queries:],
        )
        return scores


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
