"""Scorers: each a small frozen dataclass that maps a layer's block to token scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch

from kvcompress.engine.score import LayerScores, NewToken, ScoreInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowAttention:
    """Mean plus ``gamma`` times variance of the window's attention, average-pooled along the tokens.

    ``gamma = 0`` is SnapKV's score, ``gamma > 0`` CAKE's eviction indicator.

    Args:
        gamma: weight of the variance over the window's queries.
        pool_size: width of the average pooling, odd; 1 pools nothing. Zero padding counts, as in both papers' code.

    Source:
        SnapKV, arXiv 2404.14469, section 4; CAKE, arXiv 2503.12491, equation 9.
    """

    gamma: float = 0.0
    pool_size: int = 5

    def __call__(self, inputs: ScoreInputs) -> LayerScores:
        """Returns pooled scores with the layer's entropy and variance."""
        window = inputs.window_scores(("score",), gamma=self.gamma, pool_size=self.pool_size)
        return LayerScores(
            token_scores=cast("torch.Tensor", window.score).float(),
            entropy=window.entropy,
            variance=window.total_variance,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recency:
    """The position itself: later tokens score higher.

    Source: StreamingLLM, arXiv 2309.17453.
    """

    def __call__(self, inputs: ScoreInputs) -> LayerScores:
        """Returns each token's position. float32 holds whole numbers exactly up to 2^24 tokens."""
        return LayerScores(token_scores=_expand(inputs.token_positions().float(), inputs))


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomScore:
    """A pseudo-random score in [0, 1) that depends on seed, layer, head and the token's place in its own row alone.

    So a row gets the same scores alone and in a padded batch, in one block and in many.

    Args:
        seed: any whole number.
    """

    seed: int = 0

    def __call__(self, inputs: ScoreInputs) -> LayerScores:
        """Returns the hash of each token."""
        positions = _expand(inputs.token_positions(), inputs)
        return LayerScores(token_scores=self._draw(positions, inputs.row_start, inputs.layer_idx))

    def score_new(self, new: NewToken) -> torch.Tensor:
        """The hash of a new token."""
        return self._draw(new.positions, new.row_start, new.layer_idx)

    def _draw(self, positions: torch.Tensor, row_start: torch.Tensor | None, layer_idx: int) -> torch.Tensor:
        """Scores of tokens at ``positions`` int64 ``[batch, kv_heads, count]``, float32 of the same shape."""
        if row_start is not None:
            positions = positions - row_start[:, None, None]
        heads = torch.arange(positions.shape[1], device=positions.device)[None, :, None]
        state = positions + (heads << 32) + ((layer_idx * 0x9E37 + self.seed * 0x85EB) << 40)
        for multiplier in (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15):  # the two of SplitMix64's finaliser
            state = (state ^ (state >> 30)) * multiplier
        return ((state >> 20) & 0xFFFFFF).float() / 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class Unscored:
    """Zeros: for policies that evict nothing."""

    def __call__(self, inputs: ScoreInputs) -> LayerScores:
        """Returns zeros."""
        batch, heads = inputs.keys.shape[:2]
        zeros = torch.zeros(batch, heads, inputs.scored, device=inputs.keys.device)
        return LayerScores(token_scores=zeros)


def _expand(scores: torch.Tensor, inputs: ScoreInputs) -> torch.Tensor:
    batch, heads = inputs.keys.shape[:2]
    return scores.expand(batch, heads, -1)
