"""H2O: the tokens that all queries together attended most, and the latest."""

from __future__ import annotations

from dataclasses import dataclass

from kvcompress.engine.score import LayerScores, ScoreInputs
from kvcompress.policies.base import RuledPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class AccumulatedAttention:
    """Attention added up over the queries of the block, a chunk of queries at a time.

    Args:
        per_observer: divide by the number of queries that see a token; without it, early tokens have the advantage of
            having been seen by more.
    """

    per_observer: bool = False

    def __call__(self, inputs: ScoreInputs) -> LayerScores:
        """Returns the sum, or the mean over the observers, of each token."""
        sums = inputs.attention_sums()
        return LayerScores(token_scores=sums / inputs.observers().clamp(min=1) if self.per_observer else sums)


@dataclass(frozen=True, kw_only=True)
class H2O(RuledPolicy):
    """Heavy hitters: the highest attention added up over all queries, prompt and generated ones.

    Args:
        decode: name of the decode rule; ``"accumulate"`` as published: sums go on, the least goes.

    Source:
        Zhang et al., H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models, arXiv
        2306.14048. There half of the cache is for recent tokens: ``window_size = cache_size // 2``.
    """

    decode: str = "accumulate"

    @property
    def name(self) -> str:
        """``"h2o"``."""
        return "h2o"

    @property
    def scorer(self) -> AccumulatedAttention:
        """Sums over all queries."""
        return AccumulatedAttention()
