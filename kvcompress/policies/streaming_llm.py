"""StreamingLLM: the first few tokens and the last ones."""

from __future__ import annotations

from dataclasses import dataclass

from kvcompress.policies.base import Policy
from kvcompress.policies.decode_rules import DECODE_RULES, DecodeRule
from kvcompress.policies.scorers import Recency


@dataclass(frozen=True, kw_only=True)
class StreamingLLM(Policy):
    """Attention sinks and a sliding window. Keys keep the rotary position of their token.

    Source:
        Xiao et al., Efficient Streaming Language Models with Attention Sinks, arXiv 2309.17453. There the positions are
        re-assigned inside the cache; here they stay absolute, as for every policy of this package.
    """

    window_size: int = 1
    sink_tokens: int = 4

    @property
    def name(self) -> str:
        """``"streaming_llm"``."""
        return "streaming_llm"

    @property
    def scorer(self) -> Recency:
        """Later is better; the engine keeps the sinks."""
        return Recency()

    @property
    def decode_rule(self) -> DecodeRule:
        """The oldest token that is no sink goes first."""
        return DECODE_RULES["position"]
