"""KeyDiff: the keys that differ most from the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from kvcompress.engine.score import LayerScores, NewToken, ScoreInputs
from kvcompress.policies.base import RuledPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDifference:
    """The negated cosine similarity of a key with the mean direction of its row's keys."""

    def __call__(self, inputs: ScoreInputs) -> LayerScores:
        """Returns ``-cos(k, anchor)`` of each token; the anchor is the mean of all unit keys, the window's too."""
        keys = inputs.keys.float()
        anchor = _sum_of_directions(keys, inputs.positions)
        return LayerScores(token_scores=-F.cosine_similarity(keys[:, :, : inputs.scored], anchor, dim=-1))

    def score_new(self, new: NewToken) -> torch.Tensor:
        """The same of a new token, with the anchor of what is held and the token itself."""
        held, positions = new.held_keys()
        key = new.key.float()
        anchor = _sum_of_directions(held.float(), positions) + F.normalize(key, dim=-1)
        return -F.cosine_similarity(key, anchor, dim=-1)


def _sum_of_directions(keys: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """Sum of the unit keys of each row, ``[batch, kv_heads, 1, head_dim]``: as good as their mean for a cosine."""
    directions = F.normalize(keys, dim=-1)
    if positions is not None:
        directions = directions.masked_fill((positions < 0)[..., None], 0)
    return directions.sum(2, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class KeyDiff(RuledPolicy):
    """The keys least similar to the mean direction of all keys; no attention is looked at.

    Args:
        decode: name of the decode rule; ``"stored"``: the most similar goes first, by the similarity that each token
            had when it came in.

    Source:
        Park et al., KeyDiff: Key Similarity-Based KV Cache Eviction, arXiv 2504.15364.
    """

    window_size: int = 1
    decode: str = "stored"

    @property
    def name(self) -> str:
        """``"keydiff"``."""
        return "keydiff"

    @property
    def scorer(self) -> KeyDifference:
        """Negated similarities."""
        return KeyDifference()
