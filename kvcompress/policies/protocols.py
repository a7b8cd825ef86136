"""The protocols of a policy's parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from kvcompress.engine.score import LayerScores, NewToken, ScoreInputs


class Scorer(Protocol):
    """Step 1, *score*: how much each token before the window matters to its row."""

    def __call__(self, inputs: ScoreInputs) -> LayerScores:
        """Returns token scores ``[batch, kv_heads, tokens - window]`` (higher = keep) and layer statistics."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDemand:
    """What a layer allocator knows of one batch row when the first ``len(caps)`` layers have been scored.

    Attributes:
        layers: number of compressed layers of the model.
        budget: tokens per layer and head on average, window excluded; None: no bound.
        entropy: attention entropy of each scored layer, in nats (CAKE's H); None where the scorer gives none.
        variance: attention variance of each scored layer (CAKE's V); None where the scorer gives none.
        caps: tokens that each scored layer has to offer, window excluded.
        tokens: tokens of the row seen so far, window included, padding excluded.
        window_size: tokens of the observation window.
        ladders: for an allocator that needs them, float64 ``[seats]`` of each scored layer, descending: what the s-th
            token per head is worth to it. As far as an earlier call's budget of that layer reached, or its cap.
    """

    layers: int
    budget: int | None
    entropy: tuple[float, ...] | None
    variance: tuple[float, ...] | None
    caps: tuple[int, ...]
    tokens: int
    window_size: int
    ladders: tuple[NDArray[np.float64], ...] | None = None


class LayerAllocator(Protocol):
    """Step 2, *allocate*: how many tokens each layer keeps.

    Attributes:
        needs_statistics: whether it reads the layers' entropy and variance.
        needs_ladders: whether it reads the layers' ladders of token scores.
    """

    needs_statistics: bool
    needs_ladders: bool

    def __call__(self, demand: LayerDemand) -> list[int]:
        """Returns the budget of each scored layer, ``0 <= budget <= cap``."""
        ...

    def limits(self, demand: LayerDemand, budgets: list[int]) -> list[int | None]:
        """How far each layer's tokens may grow while decoding, window excluded, once all layers have budgets.

        Args:
            demand: what the last call was given.
            budgets: what it returned.

        Returns:
            One limit per layer; None for no bound.
        """
        ...

    def preference(self, entropy: torch.Tensor, variance: torch.Tensor) -> torch.Tensor | None:
        """The layer weight float32 ``[batch]`` that the budgets follow, or None where there is none."""
        ...


class NewTokenScorer(Protocol):
    """A scorer that can also score a token when it is generated; needed by decode rules of order ``"stored"``."""

    def score_new(self, new: NewToken) -> torch.Tensor:
        """Scores the new token of each row, float32 ``[batch, kv_heads, 1]``."""
        ...


class HeadAllocator(Protocol):
    """Step 2, within a layer: how the layer's tokens are shared by its kv heads."""

    needs_scores: bool

    def __call__(self, scores: torch.Tensor | None, budgets: torch.Tensor) -> torch.Tensor:
        """Splits budgets over heads.

        Args:
            scores: float32 ``[batch, kv_heads, count]`` in any order, ``-inf`` where there is no token;
                may be None unless ``needs_scores``.
            budgets: int64 ``[batch]``, tokens per head on average.

        Returns:
            int64 ``[batch, kv_heads]`` (or ``[batch, 1]``, the same for each head) on the CPU, which sums to
            ``budgets * kv_heads`` per batch row.
        """
        ...
