"""What a policy is: a scorer, a layer allocator, a head allocator and a decode rule.

The engine asks these four and does everything else. A new method is one file with one frozen dataclass; see
``docs/adding-a-policy.md``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from kvcompress.policies.checks import check_number, check_whole
from kvcompress.policies.decode_rules import DECODE_RULES, DecodeRule, decode_rule
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


@dataclass(frozen=True, kw_only=True)
class RuledPolicy(Policy):
    """Base of the policies whose decode rule is chosen by name.

    Args:
        decode: name of the decode rule, see :data:`kvcompress.policies.decode_rules.DECODE_RULES`.
    """

    decode: str = "off"

    def __post_init__(self) -> None:
        """Checks the shared parameters and the rule."""
        super().__post_init__()
        if decode_rule(self.decode).order == "stored" and not hasattr(self.scorer, "score_new"):
            others = ", ".join(name for name in DECODE_RULES if name != self.decode)
            raise ValueError(
                f"decode={self.decode!r} compares stored scores, and the scorer of {self.name!r} cannot score a token "
                f"when it is generated. Choose one of {others}."
            )

    @property
    def decode_rule(self) -> DecodeRule:
        """The rule named by ``decode``."""
        return decode_rule(self.decode)


@dataclass(frozen=True, kw_only=True)
class Wrapper(Policy):
    """Base of the policies that change one part of another policy and leave the rest to it.

    Sizes, window, sinks and decode rule are the base's; they are given there.

    Args:
        base: the policy that is changed; it may be a wrapper itself.
    """

    base: Policy
    cache_size: int | None = field(default=None, init=False, repr=False)
    compression_ratio: float | None = field(default=None, init=False, repr=False)
    window_size: int = field(default=32, init=False, repr=False)
    sink_tokens: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        """Checks the base and takes its sizes over."""
        if not isinstance(self.base, Policy):
            raise TypeError(
                f"base must be a policy such as SnapKV(cache_size=1024); got {self.base!r}. By name, write "
                f"make_policy({self.name!r}, base='snapkv', cache_size=1024)."
            )
        if self.base.cache_size is None and self.base.compression_ratio is None:
            raise ValueError(f"base must be a policy that evicts; got {self.base!r}")
        if self.base.decode_rule.storage_order:
            raise ValueError(
                f"{self.base.name!r} reproduces its authors' code as a whole and cannot be base. Use Cake."
            )
        for name in ("cache_size", "compression_ratio", "window_size", "sink_tokens"):
            object.__setattr__(self, name, getattr(self.base, name))

    @property
    def scorer(self) -> Scorer:
        """The base's, unless a wrapper says otherwise."""
        return self.base.scorer

    @property
    def layer_allocator(self) -> LayerAllocator:
        """The base's, unless a wrapper says otherwise."""
        return self.base.layer_allocator

    @property
    def head_allocator(self) -> HeadAllocator:
        """The base's, unless a wrapper says otherwise."""
        return self.base.head_allocator

    @property
    def decode_rule(self) -> DecodeRule:
        """The base's."""
        return self.base.decode_rule
