"""What prefill found out about a layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStatistics:
    """What prefill found out about a layer.

    Attributes:
        budget: int64 ``[batch]``, tokens kept per head on average, window excluded.
        preference: float32 ``[batch]``, the weight that the layer budgets follow; None for policies without one.
        entropy: float32 ``[batch]``, attention entropy in nats; None for policies that don't look at attention.
        variance: float32 ``[batch]``, attention variance; None likewise, NaN where the window had one query.
        token_scores: float32 ``[batch, kv_heads, tokens - window]``; None unless ``keep_statistics=True``.
    """

    budget: torch.Tensor
    preference: torch.Tensor | None
    entropy: torch.Tensor | None
    variance: torch.Tensor | None
    token_scores: torch.Tensor | None

    def select_batch(self, indices: torch.Tensor) -> LayerStatistics:
        """The statistics of the given sequences, int64 ``[new batch]``."""

        def pick(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor[indices.to(tensor.device)]

        return LayerStatistics(
            budget=self.budget[indices.to(self.budget.device)],
            preference=pick(self.preference),
            entropy=pick(self.entropy),
            variance=pick(self.variance),
            token_scores=pick(self.token_scores),
        )
