"""PyramidKV: SnapKV's scores, more tokens for lower layers."""

from __future__ import annotations

from dataclasses import dataclass

from kvcompress.policies.base import RuledPolicy
from kvcompress.policies.checks import check_number, check_odd
from kvcompress.policies.layer_allocators import Pyramid
from kvcompress.policies.scorers import WindowAttention


@dataclass(frozen=True, kw_only=True)
class PyramidKV(RuledPolicy):
    """Budgets that fall linearly over the layers, tokens by the mean attention of the window. Grows while decoding.

    Args:
        beta: steepness of the pyramid, >= 1: the last layer gets ``1 / beta`` of the average beyond the window.
        pool_size: odd width of the average pooling along the tokens.
        decode: name of the decode rule; ``"off"`` as published.

    Source:
        Cai et al., PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling, arXiv 2406.02069.
    """

    beta: float = 20.0
    pool_size: int = 5

    def __post_init__(self) -> None:
        """Checks the parameters."""
        super().__post_init__()
        check_number("beta", self.beta, at_least=1.0)
        check_odd("pool_size", self.pool_size)

    @property
    def name(self) -> str:
        """``"pyramidkv"``."""
        return "pyramidkv"

    @property
    def scorer(self) -> WindowAttention:
        """Mean attention of the window, pooled."""
        return WindowAttention(gamma=0.0, pool_size=self.pool_size)

    @property
    def layer_allocator(self) -> Pyramid:
        """Linear over the layers."""
        return Pyramid(beta=self.beta)
