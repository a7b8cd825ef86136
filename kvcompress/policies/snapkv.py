"""SnapKV: the same budget everywhere, tokens by the mean attention of the observation window."""

from __future__ import annotations

from dataclasses import dataclass

from kvcompress.policies.base import RuledPolicy
from kvcompress.policies.checks import check_odd
from kvcompress.policies.scorers import WindowAttention


@dataclass(frozen=True, kw_only=True)
class SnapKV(RuledPolicy):
    """SnapKV. As published nothing is evicted while decoding: rows grow by one token per step.

    Args:
        pool_size: odd width of the average pooling along the tokens.
        decode: name of the decode rule; ``"off"`` as published.

    Source:
        Li et al., SnapKV: LLM Knows What You are Looking for Before Generation, arXiv 2404.14469.
    """

    pool_size: int = 5

    def __post_init__(self) -> None:
        """Checks the parameters."""
        super().__post_init__()
        check_odd("pool_size", self.pool_size)

    @property
    def name(self) -> str:
        """``"snapkv"``."""
        return "snapkv"

    @property
    def scorer(self) -> WindowAttention:
        """Mean attention of the window, pooled."""
        return WindowAttention(gamma=0.0, pool_size=self.pool_size)
