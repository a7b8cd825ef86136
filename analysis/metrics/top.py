"""The tokens with the largest values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def largest(values: torch.Tensor, texts: Sequence[str] | None, name: str, most: int = 16) -> list[dict[str, Any]]:
    """The tokens with the largest values, largest first; of equal ones the earlier.

    Args:
        values: ``[tokens]``; NaN counts as not there.
        texts: the tokens' texts, at least as many; None without a tokenizer.
        name: what the value is called.
        most: most tokens.

    Returns:
        A ``{"position", "token", name}`` each; ``"token"`` is None without texts.
    """
    order = torch.argsort(values.nan_to_num(nan=-torch.inf), descending=True, stable=True)[:most]
    return [
        {"position": place, "token": None if texts is None else texts[place], name: float(values[place])}
        for place in order.tolist()
        if not bool(torch.isnan(values[place]))
    ]
