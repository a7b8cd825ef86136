"""DefensiveKV: the worst case over the window instead of its mean, with adaptive heads and value norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch

from kvcompress.engine.score import LayerScores, ScoreInputs
from kvcompress.kernels.window_scores.reference import pool
from kvcompress.policies.base import RuledPolicy
from kvcompress.policies.checks import check_odd, check_share
from kvcompress.policies.criticalkv import ValueAware
from kvcompress.policies.head_allocators import AdaptiveHeads
from kvcompress.policies.layer_allocators import GlobalScores


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstCase:
    """The highest attention that any query of window and group pays to a token, pooled, not below the row's mean.

    The floor says that a token which the window ignored may still be needed: below it, scores say nothing.

    Args:
        pool_size: odd width of the average pooling along the tokens.
    """

    pool_size: int = 5

    def __call__(self, inputs: ScoreInputs) -> LayerScores:
        """Returns the floored maxima."""
        highest = pool(cast("torch.Tensor", inputs.window_scores(("maximum",)).maximum).float(), self.pool_size)
        exists = (inputs.token_positions() >= 0).expand_as(highest)
        mean = (highest * exists).sum(-1, keepdim=True) / exists.sum(-1, keepdim=True).clamp(min=1)
        return LayerScores(token_scores=torch.maximum(highest, mean))


@dataclass(frozen=True, kw_only=True)
class DefensiveKV(RuledPolicy):
    """Guards against the worst case: maximum over the window, floored at the mean; value-aware, adaptive heads.

    Args:
        pool_size: odd width of the average pooling along the tokens.
        floor: part of the equal share that every head keeps in any case, in [0, 1].
        first_stage: share of the tokens chosen without regard to values, in [0, 1].
        decode: name of the decode rule; ``"off"`` as published.

    Source:
        Feng et al., Taming the Fragility of KV Cache Eviction in LLM Inference, arXiv 2510.13334.
    """

    pool_size: int = 5
    floor: float = 0.0
    first_stage: float = 0.5

    def __post_init__(self) -> None:
        """Checks the parameters."""
        super().__post_init__()
        check_odd("pool_size", self.pool_size)
        check_share("floor", self.floor)
        check_share("first_stage", self.first_stage)

    @property
    def name(self) -> str:
        """``"defensivekv"``."""
        return "defensivekv"

    @property
    def scorer(self) -> ValueAware:
        """Floored maxima, value-aware."""
        return ValueAware(base=WorstCase(pool_size=self.pool_size), first_stage=self.first_stage, epsilon=0.0)

    @property
    def head_allocator(self) -> AdaptiveHeads:
        """By scores."""
        return AdaptiveHeads(floor=self.floor)


@dataclass(frozen=True, kw_only=True)
class LayerDefensiveKV(DefensiveKV):
    """DefensiveKV with one budget for all layers and heads.

    Args:
        layer_floor: part of the average budget that every layer gets in any case, in [0, 1].

    Source:
        arXiv 2510.13334, Layer-DefensiveKV.
    """

    layer_floor: float = 0.0

    def __post_init__(self) -> None:
        """Checks the parameters."""
        super().__post_init__()
        check_share("layer_floor", self.layer_floor)

    @property
    def name(self) -> str:
        """``"layer_defensivekv"``."""
        return "layer_defensivekv"

    @property
    def layer_allocator(self) -> GlobalScores:
        """All layers compete."""
        return GlobalScores(floor=self.layer_floor)
