"""What a policy is: a scorer, a layer allocator, a head allocator and a decode rule.

The engine asks these four and does everything else. A new method is one file with one frozen dataclass; see
``docs/adding-a-policy.md``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from kvcompress.policies.checks import check_number, check_whole
from kvcompress.policies.decode_rules import DecodeRule
from kvcompress.policies.head_allocators import EqualHeads
from kvcompress.policies.layer_allocators import Uniform
from kvcompress.policies.protocols import HeadAllocator, LayerAllocator, Scorer


@dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """Base of all policies.

    Args:
        cache_size: tokens kept per layer and head on average, window included.
        compression_ratio: instead of ``cache_size``: the fraction of each row's prompt that is REMOVED, in [0, 1).
        window_size: the last ``window_size`` tokens are always kept (and, for attention-based scores, observe).
        sink_tokens: the first ``sink_tokens`` tokens of each row are always kept; they count in ``cache_size``.
    """

    cache_size: int | None = None
    compression_ratio: float | None = None
    window_size: int = 32
    sink_tokens: int = 0

    def __post_init__(self) -> None:
        """Checks the parameters that all policies share."""
        check_whole("window_size", self.window_size, at_least=1)
        check_whole("sink_tokens", self.sink_tokens, at_least=0)
        self._check_size()

    def _check_size(self) -> None:
        if (self.cache_size is None) == (self.compression_ratio is None):
            raise ValueError(
                "give exactly one of cache_size (tokens kept per layer) and compression_ratio (fraction removed); "
                f"got cache_size={self.cache_size!r}, compression_ratio={self.compression_ratio!r}"
            )
        if self.compression_ratio is not None:
            check_number("compression_ratio", self.compression_ratio)
            if not 0 <= self.compression_ratio < 1:
                raise ValueError(
                    "compression_ratio is the fraction REMOVED and must lie in [0, 1); got "
                    f"{self.compression_ratio!r}. To keep a tenth give 0.9."
                )
        if self.cache_size is not None:
            check_whole("cache_size", self.cache_size, at_least=1)
            least = self.window_size + self.sink_tokens
            if self.cache_size < least:
                raise ValueError(
                    "cache_size must be at least window_size + sink_tokens, which are always kept; got "
                    f"cache_size={self.cache_size}, window_size={self.window_size}, sink_tokens={self.sink_tokens}. "
                    f"Raise cache_size to {least} or more, or make the window smaller."
                )

    @property
    @abstractmethod
    def name(self) -> str:
        """Short lower-case name, as in the registry and on the command line."""

    @property
    @abstractmethod
    def scorer(self) -> Scorer:
        """Step 1."""

    @property
    def layer_allocator(self) -> LayerAllocator:
        """Step 2, over layers; unless a policy says otherwise, the same for each."""
        return Uniform()

    @property
    def head_allocator(self) -> HeadAllocator:
        """Step 2, over the heads of a layer; unless a policy says otherwise, the same for each."""
        return EqualHeads()

    @property
    @abstractmethod
    def decode_rule(self) -> DecodeRule:
        """Steps 5 and 6."""

    def budget(self, tokens: int) -> int | None:
        """Tokens that a layer keeps per head on average, window excluded, or None for no bound.

        Args:
            tokens: tokens of the row seen so far, padding excluded.
        """
        if self.cache_size is not None:
            return self.cache_size - self.window_size
        if self.compression_ratio is None:
            return None
        kept = math.ceil((1 - self.compression_ratio) * tokens)
        return max(kept - self.window_size, self.sink_tokens)

    def stores_chronologically(self, tokens: int) -> bool:
        """Whether prefill stores a row of that many tokens in its own order instead of best first.

        Matters only to a decode rule that looks at the order of storage.
        """
        return False
