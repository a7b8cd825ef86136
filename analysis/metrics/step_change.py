"""What changed in the attention from one step to another.

Take two maps, or one after another; :mod:`kvcompress.analysis.metrics.of_sample.step_change` has the same for a
capture.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from kvcompress.analysis.metrics.inputs import checked_attention


class Change(NamedTuple):
    """What one step changed; all ``[..., queries]``.

    Attributes:
        total_variation: mass that moved, ``½ Σ |after - before|``, in [0, 1].
        cosine: similarity of the two rows, in [0, 1]; NaN where one is empty.
        largest: largest change of a single probability, in [0, 1].
    """

    total_variation: torch.Tensor
    cosine: torch.Tensor
    largest: torch.Tensor


def change_map(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Difference of two maps: ``after - before``, ``[..., queries, keys]``. Range: [-1, 1].

    Keys that came in between count as 0 before.

    Args:
        before: probabilities ``[..., queries, keys]``.
        after: probabilities of the same shape, or with more keys.

    Raises:
        ValueError: shapes that cannot be laid over each other.
    """
    old, new = checked_attention(before, "before"), checked_attention(after, "after")
    if old.shape[:-1] != new.shape[:-1] or old.shape[-1] > new.shape[-1]:
        raise ValueError(
            "before and after must have the same shape, but for keys that came in between; got "
            f"{tuple(old.shape)} and {tuple(new.shape)}. Take the queries that both have."
        )
    return new - torch.nn.functional.pad(old, (0, new.shape[-1] - old.shape[-1]))


def change(before: torch.Tensor, after: torch.Tensor) -> Change:
    """Sums up :func:`change_map` for each query; the same arguments and errors.

    Source: total variation distance of two distributions, as in Levin, Peres, Wilmer, Markov Chains and Mixing Times,
        section 4.1.
    """
    difference = change_map(before, after)
    old, new = checked_attention(before, "before"), checked_attention(after, "after")
    dot = (old * new[..., : old.shape[-1]]).sum(-1)
    lengths = torch.linalg.vector_norm(old, dim=-1) * torch.linalg.vector_norm(new, dim=-1)
    return Change(
        total_variation=difference.abs().sum(-1) / 2,
        cosine=(dot / lengths).clamp(max=1),
        largest=difference.abs().amax(-1),
    )


def changes(maps: Sequence[torch.Tensor]) -> list[Change]:
    """:func:`change` from each map to the next: one fewer than there are maps.

    Raises:
        ValueError: fewer than two maps, or some that cannot be laid over each other.
    """
    if len(maps) < 2:
        raise ValueError(f"maps must be at least two, to be compared; got {len(maps)}")
    return [change(before, after) for before, after in pairwise(maps)]
