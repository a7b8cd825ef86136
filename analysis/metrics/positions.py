"""How far back attention reaches, and how that goes as the sequence grows.

All take probabilities ``[..., queries, keys]`` with keys at positions 0 to ``keys - 1``; queries are the last of the
keys unless ``first_query`` says where they begin. :mod:`kvcompress.analysis.metrics.of_sample.positions` has the same
for a capture.
"""

from __future__ import annotations

import torch

from kvcompress.analysis.metrics.attention_shares import distances, recent_share
from kvcompress.analysis.metrics.inputs import checked_attention


def distance_profile(attention: torch.Tensor, first_query: int | None = None) -> torch.Tensor:
    """Mass by distance between query and key, either way: mean over queries of ``Σ_{|i - j| = d} p_ij``.

    Range: [0, 1]; the sum over distances is the queries' mean mass.

    Returns:
        ``[..., distances]`` for distances 0, 1, 2, ... up to the largest there is.
    """
    values = checked_attention(attention)
    apart = distances(values, first_query).flatten()
    profile = values.new_zeros(*values.shape[:-2], int(apart.max()) + 1)
    profile.scatter_add_(-1, apart.expand(*values.shape[:-2], -1), values.flatten(-2))
    return profile / values.shape[-2]


def distance_bin(distance: torch.Tensor) -> torch.Tensor:
    """Bin of a distance, on a scale of powers of two: 0, 1, 2-3, 4-7, ...; bin ``b > 0`` is ``2^(b-1)`` to ``2^b - 1``.

    Args:
        distance: int64, at least 0.

    Returns:
        int64, of the same shape.
    """
    return torch.where(
        distance > 0, distance.clamp(min=1).double().log2().floor().long() + 1, torch.zeros_like(distance)
    )


def distance_bin_bounds(bins: int) -> list[tuple[int, int]]:
    """Smallest and largest distance of each bin of :func:`distance_bin`."""
    return [(0, 0) if number == 0 else (2 ** (number - 1), 2**number - 1) for number in range(bins)]


def binned_profile(profile: torch.Tensor, bins: int = 33) -> torch.Tensor:
    """A profile by distance, summed into bins of :func:`distance_bin`: ``[..., distances]`` to ``[..., bins]``.

    Raises:
        ValueError: too few bins for the distances.
    """
    places = distance_bin(torch.arange(profile.shape[-1], device=profile.device))
    if int(places.max()) >= bins:
        raise ValueError(f"bins must be at least {int(places.max()) + 1} for {profile.shape[-1]} distances; got {bins}")
    binned = profile.new_zeros(*profile.shape[:-1], bins)
    return binned.scatter_add_(-1, places.expand(profile.shape), profile)


def cumulative_mass(profile: torch.Tensor) -> torch.Tensor:
    """Share of the mass that lies at a distance or nearer: ``Σ_{e ≤ d} m_e / Σ m``; of the profile's shape.

    Range: [0, 1], never falls, 1 in the end; NaN without any mass.
    """
    sums = profile.double().cumsum(-1)
    return (sums / sums[..., -1:]).to(profile.dtype)


def distance_holding(profile: torch.Tensor, percent: float) -> torch.Tensor:
    """Smallest distance (or bin) within which ``percent`` of the mass lies: int64 ``[...]``; -1 without any mass.

    Args:
        profile: ``[..., distances]`` or ``[..., bins]``, at least 0.
        percent: in (0, 100].

    Raises:
        ValueError: ``percent`` out of range.
    """
    if not 0 < percent <= 100:
        raise ValueError(f"percent must be in (0, 100]; got {percent!r}")
    sums = profile.double().cumsum(-1)
    total = sums[..., -1:]
    wanted = total * (percent / 100 * (1 - 1e-9))  # a share that is reached exactly must not miss it by a rounding
    reached = (sums < wanted).sum(-1).clamp(max=profile.shape[-1] - 1)
    return torch.where(total.squeeze(-1) > 0, reached, -1)


def recent_and_distant(
    attention: torch.Tensor, recent_tokens: int = 32, first_query: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mass on keys less than ``recent_tokens`` away, and on all others: two ``[..., queries]``, in [0, 1].

    Their sum is the mass on keys: 1 unless a learned sink took some.
    """
    values = checked_attention(attention)
    recent = recent_share(values, recent_tokens, first_query)
    return recent, (values.sum(-1) - recent).clamp(min=0)
