"""Which units are dropped: the least important, at random, or by index."""

from __future__ import annotations

from math import floor
from typing import Literal, get_args

import torch

Order = Literal["least_important", "random", "first", "last"]
ORDERS: tuple[Order, ...] = get_args(Order)


def dropped_count(units: int, ratio: float) -> int:
    """How many of so many units a ratio drops, rounded to the nearest, halves up.

    Args:
        units: how many there are.
        ratio: fraction dropped, in [0, 1].

    Raises:
        ValueError: the ratio is out of range.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"a ratio is the fraction DROPPED and must lie in [0, 1]; got {ratio!r}")
    return floor(ratio * units + 0.5)


def kept(scores: torch.Tensor, dropped: int, order: Order, seed: int = 0) -> torch.Tensor:
    """Marks what stays in each row.

    Args:
        scores: ``[..., units]``, higher for what matters more; may be infinite.
        dropped: units dropped of each row, in [0, units].
        order: ``"least_important"`` drops the lowest scores, of equal ones the lower index; ``"random"`` draws for each
            row on its own; ``"first"`` drops the lowest indices, ``"last"`` the highest.
        seed: of ``"random"``.

    Returns:
        bool ``[..., units]``, on the CPU.

    Raises:
        ValueError: an unknown order, NaN among the scores, or a number out of range.
    """
    units = scores.shape[-1]
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}; got {order!r}")
    if not 0 <= dropped <= units:
        raise ValueError(f"dropped must be in [0, {units}], the number of units; got {dropped}")
    if bool(scores.isnan().any()):
        raise ValueError("scores must not be NaN; got NaN. Run the model in a wider dtype.")
    ranks = _worth(scores.double().cpu(), order, seed).argsort(dim=-1, stable=True)
    keep = torch.ones(scores.shape, dtype=torch.bool)
    return keep.scatter_(-1, ranks[..., :dropped], False)


def _worth(scores: torch.Tensor, order: Order, seed: int) -> torch.Tensor:
    """What is sorted, lowest dropped first."""
    index = torch.arange(scores.shape[-1], dtype=torch.float64).expand(scores.shape)
    if order == "random":
        return torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {"least_important": scores, "first": index, "last": -index}[order]
