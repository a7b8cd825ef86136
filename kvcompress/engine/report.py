"""What a cache tells about itself: bytes and tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """One compressed layer.

    Attributes:
        layer_idx: index in the model.
        tokens: tokens held, mean over batch and heads.
        budget: tokens kept by prefill, window excluded, for each batch row.
        num_bytes: bytes that its tensors hold.
        full_bytes: bytes of keys and values if every token seen were kept.
    """

    layer_idx: int
    tokens: float
    budget: tuple[int, ...]
    num_bytes: int
    full_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """The whole cache.

    Attributes:
        policy: name of the policy.
        seen: tokens seen (of the longest row, padding included).
        num_bytes: bytes held, bookkeeping and layers that are not compressed included.
        full_bytes: bytes that a full cache would hold.
        layers: the compressed layers.
    """

    policy: str
    seen: int
    num_bytes: int
    full_bytes: int
    layers: tuple[LayerReport, ...]

    @property
    def saved(self) -> float:
        """Fraction of the full cache's bytes that is not held, at most 1; negative where more is held."""
        return 1 - self.num_bytes / self.full_bytes if self.full_bytes else 0.0

    def __str__(self) -> str:
        """One line for the cache, one per layer."""
        head = (
            f"{self.policy}: {self.num_bytes / 2**20:.2f} MiB held of {self.full_bytes / 2**20:.2f} MiB "
            f"({self.saved:.1%} saved), {self.seen} tokens seen"
        )
        lines = [f"  layer {layer.layer_idx:>3}: {layer.tokens:8.1f} tokens kept" for layer in self.layers]
        return "\n".join([head, *lines])
