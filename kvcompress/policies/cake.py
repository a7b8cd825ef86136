"""CAKE: layer budgets by attention entropy and variance, tokens by mean and variance of the window's attention."""

from __future__ import annotations

from dataclasses import dataclass

from kvcompress.policies.base import RuledPolicy
from kvcompress.policies.checks import check_number
from kvcompress.policies.layer_allocators import Preference
from kvcompress.policies.scorers import WindowAttention


@dataclass(frozen=True, kw_only=True)
class Cake(RuledPolicy):
    """CAKE with exact budgets; every batch row by itself.

    Args:
        tau1: temperature of the entropy in the layer preference, > 0. Larger: entropy matters less.
        tau2: temperature of the variance in the layer preference, > 0.
        gamma: weight of the attention variance in the token score, >= 0.
        decode: name of the decode rule, see :data:`kvcompress.policies.decode_rules.DECODE_RULES`.

    Source:
        Qin et al., CAKE: Cascading and Adaptive KV Cache Eviction with Layer Preferences, ICLR 2025, arXiv 2503.12491.
        Differences from the authors' code: docs/numerics.md.
    """

    tau1: float = 1.0
    tau2: float = 1.0
    gamma: float = 200.0
    decode: str = "accumulate"

    def __post_init__(self) -> None:
        """Checks the parameters."""
        super().__post_init__()
        check_number("tau1", self.tau1, above=0.0)
        check_number("tau2", self.tau2, above=0.0)
        check_number("gamma", self.gamma, at_least=0.0)

    @property
    def name(self) -> str:
        """``"cake"``."""
        return "cake"

    @property
    def scorer(self) -> WindowAttention:
        """Mean plus gamma times variance, pooled over five tokens."""
        return WindowAttention(gamma=self.gamma)

    @property
    def layer_allocator(self) -> Preference:
        """Entropy and variance preference."""
        return Preference(tau1=self.tau1, tau2=self.tau2)
