"""ObservedAttention: H2O's sums, divided by how many queries could see each token."""

from __future__ import annotations

from dataclasses import dataclass

from kvcompress.policies.base import RuledPolicy
from kvcompress.policies.h2o import AccumulatedAttention


@dataclass(frozen=True, kw_only=True)
class ObservedAttention(RuledPolicy):
    """The highest mean attention over all queries that see a token. Grows while decoding.

    Args:
        decode: name of the decode rule; ``"off"`` as in kvpress.

    Source:
        kvpress's ObservedAttentionPress, after H2O, arXiv 2306.14048.
    """

    window_size: int = 1

    @property
    def name(self) -> str:
        """``"observed_attention"``."""
        return "observed_attention"

    @property
    def scorer(self) -> AccumulatedAttention:
        """Mean over the queries that see a token."""
        return AccumulatedAttention(per_observer=True)
