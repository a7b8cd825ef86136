"""TOVA: the tokens that the last query attends most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch

from kvcompress.engine.score import LayerScores, ScoreInputs
from kvcompress.policies.base import RuledPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class LastQueryAttention:
    """Attention of the last query, the mean over all heads of the layer: each head keeps the same tokens."""

    def __call__(self, inputs: ScoreInputs) -> LayerScores:
        """Returns the layer's mean for each head."""
        mean = cast("torch.Tensor", inputs.window_scores(("mean",), queries=1).mean).float()
        return LayerScores(token_scores=mean.mean(1, keepdim=True).expand_as(mean))


@dataclass(frozen=True, kw_only=True)
class TOVA(RuledPolicy):
    """The highest attention under the last query, the same tokens for all heads of a layer.

    Args:
        decode: name of the decode rule; ``"last_query"`` as published, but by each head's own attention.

    Source:
        Oren et al., Transformers are Multi-State RNNs, arXiv 2401.06104.
    """

    window_size: int = 1
    decode: str = "last_query"

    @property
    def name(self) -> str:
        """``"tova"``."""
        return "tova"

    @property
    def scorer(self) -> LastQueryAttention:
        """Attention of the last query."""
        return LastQueryAttention()
