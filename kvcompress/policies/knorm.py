"""Knorm: the keys of smallest norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvcompress.engine.score import LayerScores, NewToken, ScoreInputs
from kvcompress.policies.base import RuledPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyNorm:
    """The negated norm of the key: keys with a small one draw attention."""

    def __call__(self, inputs: ScoreInputs) -> LayerScores:
        """Returns ``-|k|`` of each token."""
        return LayerScores(token_scores=_negated_norm(inputs.keys[:, :, : inputs.scored]))

    def score_new(self, new: NewToken) -> torch.Tensor:
        """``-|k|`` of a new token."""
        return _negated_norm(new.key)


def _negated_norm(keys: torch.Tensor) -> torch.Tensor:
    return keys.float().square().sum(-1).sqrt().neg()


@dataclass(frozen=True, kw_only=True)
class Knorm(RuledPolicy):
    """The keys of smallest norm; no attention is looked at.

    Args:
        decode: name of the decode rule; ``"stored"``: the largest norm goes first.

    Source:
        Devoto et al., A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression, arXiv 2406.11430.
    """

    window_size: int = 1
    decode: str = "stored"

    @property
    def name(self) -> str:
        """``"knorm"``."""
        return "knorm"

    @property
    def scorer(self) -> KeyNorm:
        """Negated norms."""
        return KeyNorm()
