"""AdaKV: another policy, with the tokens of each layer shared by its heads as their scores ask for."""

from __future__ import annotations

from dataclasses import dataclass

from kvcompress.policies.base import Wrapper
from kvcompress.policies.checks import check_share
from kvcompress.policies.head_allocators import AdaptiveHeads


@dataclass(frozen=True, kw_only=True)
class AdaKV(Wrapper):
    """Adaptive heads for another policy: a layer's tokens go to its highest scores, whichever head has them.

    Args:
        base: the policy that scores, ``AdaKV(base=SnapKV(cache_size=1024))``.
        floor: part of the equal share that every head keeps in any case, in [0, 1].

    Source:
        Feng et al., Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation, arXiv 2407.11550.
    """

    floor: float = 0.2

    def __post_init__(self) -> None:
        """Checks the parameters."""
        super().__post_init__()
        check_share("floor", self.floor)

    @property
    def name(self) -> str:
        """``"adakv"``."""
        return "adakv"

    @property
    def head_allocator(self) -> AdaptiveHeads:
        """By scores, with a floor."""
        return AdaptiveHeads(floor=self.floor)
