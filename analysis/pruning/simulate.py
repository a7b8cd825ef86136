"""Pruning curves: what dropping parts of the cache costs, over ratios and orders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import torch
from transformers import PreTrainedModel

from kvcompress.analysis.pruning.consequences import consequences
from kvcompress.analysis.pruning.importance import Importance, prompt_importance
from kvcompress.analysis.pruning.leave_one_out import measured_importance
from kvcompress.analysis.pruning.order import Order
from kvcompress.analysis.pruning.plan import What, make_plan


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningPoint:
    """What dropping one share of one kind of unit does.

    Attributes:
        what: the units.
        order: which of them are dropped.
        seed: of the order ``"random"``, else None.
        ratio: fraction asked for.
        dropped: units dropped, mean over windows.
        units: units that there were.
        kv_bytes: bytes of what stays of the prompt's cache, mean over windows, bookkeeping excluded.
        full_bytes: bytes of all of it.
        kl: mean of KL(full || pruned) of the next token, in nats.
        top1: share of positions with the same likeliest token.
        perplexity: of the continuation with the pruned cache.
        full_perplexity: the same with the full cache.
    """

    what: What
    order: Order
    seed: int | None
    ratio: float
    dropped: int
    units: int
    kv_bytes: int
    full_bytes: int
    kl: float
    top1: float
    perplexity: float
    full_perplexity: float

    def to_json(self) -> dict[str, Any]:
        """All fields by name; a number that is not finite becomes None."""
        return {
            name: None if isinstance(value, float) and not isfinite(value) else value
            for name, value in asdict(self).items()
        }


class PruningSimulation:
    """Drops parts of the caches of prompts and measures what follows. The prompts are scored once, when it is made.

    Args:
        model: a decoder that the engine can compress, in evaluation mode.
        windows: int64 ``[windows, context + steps + 1]``; each begins with its prompt.
        context: tokens of each prompt, at least 2.
        leave_one_out: score heads, and by them layers, by leaving each head out once, see
            :func:`~kvcompress.analysis.pruning.leave_one_out.measured_importance`; the prompts need 8 tokens then.
        advance: called after each head that was left out.

    Raises:
        ValueError: no room for a prompt and a prediction.
        UnsupportedModelError: the model cannot be compressed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        windows: torch.Tensor,
        *,
        context: int,
        leave_one_out: bool = False,
        advance: Callable[[], object] = lambda: None,
    ) -> None:
        if context < 2 or windows.dim() != 2 or windows.shape[1] < context + 2 or not len(windows):
            raise ValueError(
                "windows must be [windows, context + steps + 1] with context at least 2 and steps at least 1; got "
                f"{list(windows.shape)} and context={context}"
            )
        self.model, self.windows, self.context = model, windows, context
        self.importance: list[Importance] = []
        for prompt in windows[:, :context].tolist():
            importance = prompt_importance(model, prompt)
            if leave_one_out:
                importance = measured_importance(model, prompt, importance, advance=advance)
            self.importance.append(importance)

    def point(self, what: What, ratio: float, order: Order = "least_important", seed: int = 0) -> PruningPoint:
        """Drops a share of one kind of unit.

        Args:
            what: ``"layers"``, ``"heads"``, ``"dimensions"`` or ``"tokens"``.
            ratio: fraction dropped, in [0, 1].
            order: which of them.
            seed: of the order ``"random"``.

        Raises:
            ValueError: an unknown unit or order, or a ratio out of range.
        """
        plans = [make_plan(importance, what, ratio, order, seed) for importance in self.importance]
        wholes = [make_plan(importance, what, 0.0, order, seed) for importance in self.importance]
        found = consequences(self.model, self.windows, context=self.context, edits=[plan.edit for plan in plans])
        itemsize, count = self.model.dtype.itemsize, len(plans)
        return PruningPoint(
            what=what,
            order=order,
            seed=seed if order == "random" else None,
            ratio=ratio,
            dropped=sum(plan.dropped for plan in plans) // count,
            units=sum(plan.units for plan in plans) // count,
            kv_bytes=sum(plan.entries for plan in plans) * itemsize // count,
            full_bytes=sum(plan.entries for plan in wholes) * itemsize // count,
            kl=found.kl,
            top1=found.top1,
            perplexity=found.perplexity,
            full_perplexity=found.full_perplexity,
        )

    def curve(
        self,
        whats: Sequence[What],
        ratios: Sequence[float],
        orders: Sequence[Order] = ("least_important", "random"),
        *,
        seed: int = 0,
        advance: Callable[[], object] = lambda: None,
    ) -> list[PruningPoint]:
        """A point for each kind of unit, order and ratio, in that nesting.

        Args:
            whats: the kinds of units.
            ratios: fractions dropped.
            orders: which of the units.
            seed: of the order ``"random"``.
            advance: called after each point.
        """
        points = []
        for what in whats:
            for order in orders:
                for ratio in ratios:
                    points.append(self.point(what, ratio, order, seed))
                    advance()
        return points
