"""KVC, this package's own: attention where it is sure, unusual keys where it is not, one budget for all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch

from kvcompress.engine.score import LayerScores, ScoreInputs
from kvcompress.kernels.window_scores.reference import pool
from kvcompress.policies.base import RuledPolicy
from kvcompress.policies.checks import check_number, check_odd, check_share
from kvcompress.policies.head_allocators import AdaptiveHeads
from kvcompress.policies.keydiff import KeyDifference
from kvcompress.policies.layer_allocators import GlobalScores

_LEAST_SPREAD = 1e-12  # a term that is the same for all tokens of a layer then adds nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionAndNovelty:
    """``z(attention) + novelty * z(key difference) + value * z(value norm)``, each pooled.

    ``z`` standardises a term over all tokens and heads of the layer. Attention is heavy-tailed: the few tokens that the
    window asks for lie many deviations above the rest and win whatever the other terms say. Among the rest the window
    says nothing, and keys that differ from the others (facts in filler) and large values decide.

    Args:
        novelty: weight of the key's difference from the mean direction of its row's keys.
        value: weight of the value's Euclidean norm.
        pool_size: odd width of the average pooling of each term along the tokens; zero padding counts.

    Source:
        Window attention: SnapKV, arXiv 2404.14469. Key difference: KeyDiff, arXiv 2504.15364. Value norm: VATP, arXiv
        2406.12335 (as a factor there). The sum of standardised terms: found by search, bench/policy_search.py.
    """

    novelty: float
    value: float
    pool_size: int

    def __call__(self, inputs: ScoreInputs) -> LayerScores:
        """Returns the weighted sum, with the window's entropy and variance."""
        exists = (inputs.token_positions() >= 0).expand(*inputs.keys.shape[:2], -1)
        window = inputs.window_scores(("score",), pool_size=self.pool_size)
        total = standardised(cast("torch.Tensor", window.score).float(), exists)
        if self.novelty:
            difference = 1 + KeyDifference()(inputs).token_scores
            total = total + self.novelty * self._pooled(difference, exists)
        if self.value:
            norms = inputs.values[:, :, : inputs.scored].float().norm(dim=-1)
            total = total + self.value * self._pooled(norms, exists)
        return LayerScores(token_scores=total, entropy=window.entropy, variance=window.total_variance)

    def _pooled(self, term: torch.Tensor, exists: torch.Tensor) -> torch.Tensor:
        # Places without a token are zero, as beyond a row's ends: a padded row gets what it gets alone.
        return standardised(pool(term.masked_fill(~exists, 0.0), self.pool_size), exists)


def standardised(term: torch.Tensor, exists: torch.Tensor) -> torch.Tensor:
    """Takes a term's mean over a layer's tokens off and divides by its standard deviation.

    Args:
        term: float32 ``[batch, kv_heads, scored]``.
        exists: bool of the same shape, where there is a token.

    Returns:
        float32 of the same shape: mean 0 and deviation 1 over heads and tokens of each sequence, 0 where there is none.
    """
    count = exists.sum((1, 2), keepdim=True).clamp(min=1)
    mean = term.masked_fill(~exists, 0.0).sum((1, 2), keepdim=True) / count
    centred = (term - mean).masked_fill(~exists, 0.0)
    spread = (centred.square().sum((1, 2), keepdim=True) / count).sqrt()
    return centred / spread.clamp(min=_LEAST_SPREAD)


@dataclass(frozen=True, kw_only=True)
class KVC(RuledPolicy):
    """Window attention plus key novelty plus value norms, standardised; layers and heads compete for one budget.

    How it was found, what it gains and where it falls short: docs/policies.md. The window should be no longer than what
    the prompt ends with as its question.

    Args:
        novelty: weight of the key's difference beside the attention's, which is 1, >= 0.
        value: weight of the value's norm, >= 0.
        pool_size: odd width of the average pooling along the tokens.
        layer_floor: part of the average budget that every layer gets in any case, in [0, 1].
        floor: part of a layer's equal share that every head gets in any case, in [0, 1].
        decode: name of the decode rule.
    """

    novelty: float = 2.0
    value: float = 1.0
    pool_size: int = 5
    layer_floor: float = 0.2
    floor: float = 0.5
    decode: str = "accumulate"

    def __post_init__(self) -> None:
        """Checks the parameters."""
        super().__post_init__()
        check_number("novelty", self.novelty, at_least=0.0)
        check_number("value", self.value, at_least=0.0)
        check_odd("pool_size", self.pool_size)
        check_share("layer_floor", self.layer_floor)
        check_share("floor", self.floor)

    @property
    def name(self) -> str:
        """``"kvc"``."""
        return "kvc"

    @property
    def scorer(self) -> AttentionAndNovelty:
        """The sum of the three terms."""
        return AttentionAndNovelty(novelty=self.novelty, value=self.value, pool_size=self.pool_size)

    @property
    def layer_allocator(self) -> GlobalScores:
        """All layers compete."""
        return GlobalScores(floor=self.layer_floor)

    @property
    def head_allocator(self) -> AdaptiveHeads:
        """By scores."""
        return AdaptiveHeads(floor=self.floor)
