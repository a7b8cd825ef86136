"""Random: a baseline that knows nothing."""

from __future__ import annotations

from dataclasses import dataclass

from kvcompress.policies.base import Policy
from kvcompress.policies.checks import check_whole
from kvcompress.policies.decode_rules import DECODE_RULES, DecodeRule
from kvcompress.policies.scorers import RandomScore


@dataclass(frozen=True, kw_only=True)
class Random(Policy):
    """Keeps the window and tokens drawn without regard to attention, per layer and head.

    Args:
        seed: seed of the draw; the same seed keeps the same tokens.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the parameters."""
        super().__post_init__()
        check_whole("seed", self.seed, at_least=0)

    @property
    def name(self) -> str:
        """``"random"``."""
        return "random"

    @property
    def scorer(self) -> RandomScore:
        """A hash of each token."""
        return RandomScore(seed=self.seed)

    @property
    def decode_rule(self) -> DecodeRule:
        """The token with the least draw goes first."""
        return DECODE_RULES["stored"]
