"""Head allocators: how a layer's tokens are shared by its kv heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvcompress.policies.checks import check_share


@dataclass(frozen=True, slots=True)
class EqualHeads:
    """The same number of tokens for every head."""

    needs_scores = False

    def __call__(self, scores: torch.Tensor | None, budgets: torch.Tensor) -> torch.Tensor:
        """Returns ``budgets`` for each of the heads, int64 ``[batch, 1]`` on the CPU."""
        return budgets.cpu()[:, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveHeads:
    """A layer's tokens go to the highest scores of all its heads; each head gets a part of its equal share first.

    A larger budget never lowers a head's share, and what a head gets depends on its best tokens alone: sharing a
    smaller budget among the tokens that a larger one kept gives what sharing it among all tokens would.

    Args:
        floor: part of the equal share that every head gets in any case, in [0, 1].

    Source:
        Feng et al., Ada-KV, arXiv 2407.11550, algorithm 1 (there the floor is a safeguard, alpha = 0.2).
    """

    floor: float = 0.2
    needs_scores = True

    def __post_init__(self) -> None:
        """Checks the floor."""
        check_share("floor", self.floor)

    def __call__(self, scores: torch.Tensor | None, budgets: torch.Tensor) -> torch.Tensor:
        """Returns each head's share, int64 ``[batch, kv_heads]``; equal scores: the lower head first."""
        if scores is None:
            raise ValueError("AdaptiveHeads shares by token scores; got none")
        batch, heads, count = scores.shape
        budgets = budgets.to(scores.device)
        # NaN counts as the least score of a token that exists.
        scores = scores.masked_fill(scores.isnan(), torch.finfo(scores.dtype).min)
        most = min(count, int(budgets.max()) * heads)
        best = scores.topk(most, dim=-1).values  # [B, H, most]
        exists = best > float("-inf")
        floors = (budgets.double() * self.floor).floor().long()
        sure = torch.arange(most, device=scores.device) < floors[:, None, None]
        ranked = best.masked_fill(sure & exists, float("inf")).flatten(1)
        order = ranked.argsort(dim=-1, descending=True, stable=True)
        given = torch.arange(heads * most, device=scores.device) < (budgets * heads)[:, None]
        given = given & exists.flatten(1).gather(1, order)
        head = order.div(max(most, 1), rounding_mode="floor")
        shares = torch.zeros(batch, heads, dtype=torch.int64, device=scores.device)
        return shares.scatter_add_(1, head, given.long()).cpu()
