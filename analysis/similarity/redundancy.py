"""Redundancy: the share of tokens that have a near double among the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvcompress.analysis.similarity.cosine import unit_vectors

_BLOCK = 256  # rows of the cosine matrix at a time


def nearest_cosine(vectors: torch.Tensor, *, block: int = _BLOCK) -> torch.Tensor:
    """Cosine of each vector's nearest other one, a block of rows at a time.

    Args:
        vectors: ``[n, dim]``.
        block: rows of the cosine matrix that are held at a time, at least 1.

    Returns:
        float64 ``[n]``, in [-1, 1]; ``-inf`` for a single vector, which has no other.

    Raises:
        ValueError: the block is below 1.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1; got {block}")
    unit = unit_vectors(vectors.double())
    nearest = torch.full((len(unit),), -torch.inf, dtype=torch.float64)
    for start in range(0, len(unit), block):
        cosine = (unit[start : start + block] @ unit.T).clamp(-1, 1)
        cosine.diagonal(offset=start).fill_(-torch.inf)
        nearest[start : start + block] = cosine.amax(-1)
    return nearest


def redundancy(vectors: torch.Tensor, thresholds: Sequence[float], *, block: int = _BLOCK) -> list[float]:
    """Share of vectors whose nearest other one has a cosine above each threshold.

    Args:
        vectors: ``[n, dim]``, at least one.
        thresholds: cosines, in [-1, 1].
        block: see :func:`nearest_cosine`.

    Returns:
        One share per threshold, in [0, 1].

    Raises:
        ValueError: no vectors, or a threshold out of range.
    """
    if not len(vectors) or not all(-1 <= threshold <= 1 for threshold in thresholds):
        raise ValueError(
            f"there must be a vector, and thresholds must lie in [-1, 1]; got {len(vectors)} vectors and {thresholds}"
        )
    nearest = nearest_cosine(vectors, block=block)
    return [float((nearest > threshold).double().mean()) for threshold in thresholds]
