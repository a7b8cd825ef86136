"""Cosine similarity of cached keys or values: between tokens, heads and layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def token_vectors(states: torch.Tensor) -> torch.Tensor:
    """One vector per token, all heads side by side.

    Args:
        states: ``[kv_heads, tokens, dim]``.

    Returns:
        float64 ``[tokens, kv_heads · dim]``.

    Raises:
        ValueError: another number of axes, or values that are not finite.
    """
    if states.dim() != 3 or states.numel() == 0:
        raise ValueError(f"states must be [kv_heads, tokens, dim], none of them 0; got {list(states.shape)}")
    if not bool(torch.isfinite(states).all()):
        raise ValueError("states must be finite; got NaN or infinity. Run the model in a wider dtype.")
    return states.detach().double().transpose(0, 1).flatten(1)


def unit_vectors(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors ``[n, dim]`` divided by their norms; a zero vector stays zero, similar to nothing."""
    norms: torch.Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / norms.masked_fill(norms == 0, 1)


def cosine_matrix(vectors: torch.Tensor) -> torch.Tensor:
    """Cosine of each pair of ``[n, dim]``: float64 ``[n, n]``, in [-1, 1]; 0 where a vector is zero."""
    unit = unit_vectors(vectors.double())
    return (unit @ unit.T).clamp(-1, 1)


def mean_cosine(vectors: torch.Tensor) -> float | None:
    """Mean cosine over all pairs of different vectors that are not zero, without the matrix; None for fewer than two.

    Args:
        vectors: ``[n, dim]``.
    """
    unit = unit_vectors(vectors.double())
    count = int(unit.any(-1).sum())
    if count < 2:
        return None
    return float((unit.sum(0).square().sum() - count) / (count * (count - 1)))


def head_cosine(states: torch.Tensor) -> torch.Tensor:
    """Cosine between heads, each flattened: ``[kv_heads, tokens, dim]`` to float64 ``[kv_heads, kv_heads]``."""
    return cosine_matrix(states.detach().double().flatten(1))


def layer_cosine(layers: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Cosine between flattened layers ``[kv_heads, tokens, dim]``: float64 ``[L, L]``; None where shapes differ."""
    if len({layer.shape for layer in layers}) > 1:
        return None
    return cosine_matrix(torch.stack([layer.detach().double().flatten() for layer in layers]))
