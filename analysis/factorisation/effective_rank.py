"""How many directions a matrix really uses."""

from __future__ import annotations

import torch


def effective_rank(singular_values: torch.Tensor) -> torch.Tensor:
    """``exp(−Σ p ln p)`` of ``p = σ / Σ σ``: 1 to the rank; 0 for a zero matrix.

    Args:
        singular_values: ``[..., n]``, not negative, in any order.

    Returns:
        float64 ``[...]``.

    Raises:
        ValueError: none, a negative one, or one that is not finite.

    Source:
        Roy and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007.
    """
    values = _checked(singular_values)
    total = values.sum(-1, keepdim=True)
    shares = values / total.masked_fill(total == 0, 1)
    rank: torch.Tensor = torch.special.entr(shares).sum(-1).exp()
    return rank.masked_fill(total[..., 0] == 0, 0)


def stable_rank(singular_values: torch.Tensor) -> torch.Tensor:
    """``Σ σ² / max σ²``: 1 to the rank; 0 for a zero matrix.

    Args:
        singular_values: ``[..., n]``, not negative, in any order.

    Returns:
        float64 ``[...]``.

    Raises:
        ValueError: none, a negative one, or one that is not finite.

    Source:
        Rudelson and Vershynin, Sampling from large matrices, J. ACM 54 (2007).
    """
    values = _checked(singular_values)
    largest = values.amax(-1, keepdim=True)
    scaled = values / largest.masked_fill(largest == 0, 1)  # squares of the values themselves might overflow
    return scaled.square().sum(-1)


def _checked(singular_values: torch.Tensor) -> torch.Tensor:
    values = singular_values.double()
    if values.dim() == 0 or values.shape[-1] == 0:
        raise ValueError(f"singular_values must be [..., n] with n at least 1; got shape {list(values.shape)}")
    if not bool(torch.isfinite(values).all()) or bool((values < 0).any()):
        raise ValueError("singular_values must be finite and not negative. Compute them with torch.linalg.svdvals.")
    return values
