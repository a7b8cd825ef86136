"""Published settings of CAKE.

Source: the official code of Qin et al., CAKE, ICLR 2025, arXiv 2503.12491 (settings for cache sizes 1024 and 128).
"""

from __future__ import annotations

from typing import NamedTuple


class Temperatures(NamedTuple):
    """``tau1`` (entropy) and ``tau2`` (variance) of the layer preference."""

    tau1: float
    tau2: float


# model -> {cache size: temperatures}; window_size 32 and gamma 200 throughout.
PRESETS: dict[str, dict[int, Temperatures]] = {
    "llama3.1-8b-128k": {1024: Temperatures(1.6, 0.4), 128: Temperatures(1.6, 0.6)},
    "llama2-7b-chat-4k": {1024: Temperatures(1.9, 1.8), 128: Temperatures(0.9, 2.3)},
    "llama2-13b-chat-4k": {1024: Temperatures(0.5, 0.4), 128: Temperatures(1.8, 2.0)},
    "mistral-0.3-7b-32k": {1024: Temperatures(0.8, 0.5), 128: Temperatures(1.0, 0.8)},
    "qwen2.5-7b-instruct": {1024: Temperatures(1.5, 0.6), 128: Temperatures(0.4, 0.6)},
}


def preset(name: str, cache_size: int) -> Temperatures:
    """The published temperatures for a model, of the published cache size that is nearest on a logarithmic scale.

    Args:
        name: a key of :data:`PRESETS`.
        cache_size: tokens kept per layer on average.

    Raises:
        ValueError: unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}")
    sizes = PRESETS[name]
    nearest = min(sizes, key=lambda size: max(size, cache_size) / max(min(size, cache_size), 1))
    return sizes[nearest]
