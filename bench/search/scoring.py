"""What the search makes scores of: terms that say why a token may matter, and ways to put them together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, cast

import torch

from kvcompress.engine.score import LayerScores, ScoreInputs
from kvcompress.kernels.window_scores.reference import Statistic, WindowScores, pool
from kvcompress.policies.keydiff import KeyDifference

Attention = Literal["mean", "variance", "maximum"]
Combination = Literal["layer", "head", "rank", "product"]
ATTENTIONS: Final[tuple[Attention, ...]] = ("mean", "variance", "maximum")
COMBINATIONS: Final[tuple[Combination, ...]] = ("layer", "head", "rank", "product")
_GAMMA = 200.0  # weight of the variance, as CAKE has it
_LEAST = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Blend:
    """Attention of the window, plus how much a key differs from the others, plus the norm of the value.

    Args:
        attention: which statistic of the window's attention; ``variance`` adds it to the mean as CAKE does.
        pool_size: odd width of the average pooling of the attention.
        novelty: weight of the key's difference (KeyDiff's score), >= 0; that of the attention is 1.
        value: weight of the value's norm, >= 0.
        novelty_pool: odd width of the average pooling of these two.
        combination: what makes the terms comparable: ``layer`` standardises each over all heads and tokens of a layer,
            ``head`` over the tokens of each head, ``rank`` takes the negated logarithm of the rank in the head, and
            ``product`` the logarithm itself.
    """

    attention: Attention
    pool_size: int
    novelty: float
    value: float
    novelty_pool: int
    combination: Combination

    def __call__(self, inputs: ScoreInputs) -> LayerScores:
        """Returns the weighted sum of the terms, with the window's entropy and variance."""
        exists = (inputs.token_positions() >= 0).expand(*inputs.keys.shape[:2], -1)
        emit: tuple[Statistic, ...] = ("maximum",) if self.attention == "maximum" else ("score",)
        gamma = _GAMMA if self.attention == "variance" else 0.0
        window = inputs.window_scores(emit, gamma=gamma, pool_size=self.pool_size)
        total = self._comparable(self._attention(window), exists)
        if self.novelty:
            difference = (1 + KeyDifference()(inputs).token_scores) * exists
            total = total + self.novelty * self._comparable(pool(difference, self.novelty_pool), exists)
        if self.value:
            norms = inputs.values[:, :, : inputs.scored].float().norm(dim=-1) * exists
            total = total + self.value * self._comparable(pool(norms, self.novelty_pool), exists)
        return LayerScores(token_scores=total, entropy=window.entropy, variance=window.total_variance)

    def _attention(self, window: WindowScores) -> torch.Tensor:
        if self.attention == "maximum":
            return pool(cast("torch.Tensor", window.maximum).float(), self.pool_size)
        return cast("torch.Tensor", window.score).float()

    def _comparable(self, term: torch.Tensor, exists: torch.Tensor) -> torch.Tensor:
        """A term that can be added to others: float32 ``[batch, kv_heads, scored]``."""
        if self.combination == "product":
            return term.clamp(min=_LEAST).log()
        if self.combination == "rank":
            order = term.masked_fill(~exists, float("-inf")).argsort(dim=-1, descending=True, stable=True)
            return -(order.argsort(dim=-1).float() + 1).log()
        axes = (1, 2) if self.combination == "layer" else (2,)
        count = exists.sum(axes, keepdim=True).clamp(min=1)
        centred = (term - (term * exists).sum(axes, keepdim=True) / count) * exists
        spread = (centred.square().sum(axes, keepdim=True) / count).sqrt()
        return centred / spread.clamp(min=_LEAST)
