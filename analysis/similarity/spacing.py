"""Evenly spaced places: what is shown of something that is too long to show."""

from __future__ import annotations

import torch


def evenly_spaced(count: int, most: int) -> torch.Tensor:
    """At most ``most`` of ``count`` places, first and last included, all different: int64, ascending, on the CPU.

    Args:
        count: places that there are, at least 1.
        most: places wanted at most, at least 1; a single one is the first.

    Raises:
        ValueError: a number below 1.
    """
    if count < 1 or most < 1:
        raise ValueError(f"count and most must be at least 1; got count={count} and most={most}")
    if most >= count:
        return torch.arange(count)
    steps = max(most - 1, 1)
    return torch.arange(most) * (count - 1) // steps
