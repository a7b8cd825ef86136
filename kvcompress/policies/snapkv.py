"""SnapKV: the same budget everywhere, tokens by the mean attention of the observation window."""

from __future__ import annotations

from dataclasses import dataclass

from kvcompress.policies.base import Policy
from kvcompress.policies.checks import check_whole
from kvcompress.policies.decode_rules import DecodeRule, decode_rule
from kvcompress.policies.scorers import WindowAttention


@dataclass(frozen=True, kw_only=True)
class SnapKV(Policy):
    """SnapKV. As published nothing is evicted while decoding: rows grow by one token per step.

    Args:
        pool_size: odd width of the average pooling along the tokens.
        decode: name of the decode rule; ``"off"`` as published.

    Source:
        Li et al., SnapKV: LLM Knows What You are Looking for Before Generation, arXiv 2404.14469.
    """

    pool_size: int = 5
    decode: str = "off"

    def __post_init__(self) -> None:
        """Checks the parameters."""
        super().__post_init__()
        check_whole("pool_size", self.pool_size, at_least=1)
        if self.pool_size % 2 == 0:
            raise ValueError(f"pool_size must be odd, so that a token is pooled evenly; got {self.pool_size}")
        decode_rule(self.decode)

    @property
    def name(self) -> str:
        """``"snapkv"``."""
        return "snapkv"

    @property
    def scorer(self) -> WindowAttention:
        """Mean attention of the window, pooled."""
        return WindowAttention(gamma=0.0, pool_size=self.pool_size)

    @property
    def decode_rule(self) -> DecodeRule:
        """The rule named by ``decode``."""
        return decode_rule(self.decode)
