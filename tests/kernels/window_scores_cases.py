"""Shapes, layers and inputs of the tests of window_scores."""

import torch

from kvcompress.kernels.window_scores.reference import STATISTICS, AttentionSpec

EVERYTHING = {"emit": STATISTICS, "gamma": 20.0, "pool_size": 5}

SHAPES = {  # batch, query heads, kv heads, keys, window, head_dim
    "B1-H4x4-T63-W8-D64": (1, 4, 4, 63, 8, 64),
    "B2-H8x2-T111-W32-D80": (2, 8, 2, 111, 32, 80),
    "B1-H7x1-T200-W32-D24": (1, 7, 1, 200, 32, 24),
    "B1-H8x1-T150-W5-D112": (1, 8, 1, 150, 5, 112),
    "B2-H2x2-T33-W1-D16": (2, 2, 2, 33, 1, 16),
    "B1-H4x2-T70-W32-D512": (1, 4, 2, 70, 32, 512),
    "B1-H12x1-T99-W128-D16": (1, 12, 1, 199, 128, 16),
}
LARGE = {
    "B1-H32x8-T20000-W32-D128": (1, 32, 8, 20000, 32, 128),
    "B2-H28x4-T5001-W32-D128": (2, 28, 4, 5001, 32, 128),
    "B1-H8x1-T3000-W8-D256": (1, 8, 1, 3000, 8, 256),
    "B1-H8x2-T3000-W32-D512": (1, 8, 2, 3000, 32, 512),
    "B1-H12x1-T2500-W128-D96": (1, 12, 1, 2500, 128, 96),
}
SPECS = ("plain", "softcap", "sinks", "sliding", "all")


def spec_of(name: str, query_heads: int, keys: int, device: str = "cpu") -> AttentionSpec:
    """One of SPECS for a layer of these sizes."""
    sinks = torch.linspace(-2, 3, query_heads, device=device)
    return {
        "plain": AttentionSpec(0.2),
        "softcap": AttentionSpec(0.3, softcap=4.0),
        "sinks": AttentionSpec(0.2, sinks=sinks),
        "sliding": AttentionSpec(0.2, sliding_window=max(3, keys // 3)),
        "all": AttentionSpec(0.3, softcap=4.0, sinks=sinks, sliding_window=max(3, keys // 2)),
    }[name]


def make(
    shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu", seed: int = 11
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys of a shape; the largest logits are near 10."""
    batch, query_heads, heads, keys, window, dim = shape
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, query_heads, window, dim, generator=generator) * (24 / dim) ** 0.5 * 2
    key = torch.randn(batch, heads, keys, dim, generator=generator)
    return query.to(device, dtype), key.to(device, dtype)
