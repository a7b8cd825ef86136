"""Head allocators: how a layer's tokens are shared by its kv heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class EqualHeads:
    """The same number of tokens for every head."""

    needs_scores = False

    def __call__(self, scores: torch.Tensor | None, budgets: torch.Tensor) -> torch.Tensor:
        """Returns ``budgets`` for each of the heads, int64 ``[batch, 1]`` on the CPU."""
        return budgets.cpu()[:, None]
