"""Full: no eviction; the yardstick, through the same engine."""

from __future__ import annotations

from dataclasses import dataclass

from kvcompress.policies.base import Policy
from kvcompress.policies.checks import check_whole
from kvcompress.policies.decode_rules import DECODE_RULES, DecodeRule
from kvcompress.policies.scorers import Unscored


@dataclass(frozen=True, kw_only=True)
class Full(Policy):
    """Keeps every token. Takes no ``cache_size``."""

    def __post_init__(self) -> None:
        """Checks that no size was given."""
        if self.cache_size is not None or self.compression_ratio is not None:
            raise ValueError(
                "Full keeps every token and takes neither cache_size nor compression_ratio; got "
                f"cache_size={self.cache_size!r}, compression_ratio={self.compression_ratio!r}. Leave them out."
            )
        check_whole("window_size", self.window_size, at_least=1)

    @property
    def name(self) -> str:
        """``"full"``."""
        return "full"

    @property
    def scorer(self) -> Unscored:
        """Nothing to score."""
        return Unscored()

    @property
    def decode_rule(self) -> DecodeRule:
        """Rows grow."""
        return DECODE_RULES["off"]
