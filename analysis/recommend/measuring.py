"""Measures the strategies with the model, on the capture's own tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from kvcompress.analysis.fidelity.teacher_forcing import force
from kvcompress.analysis.recommend.strategies import Budget, Strategy
from kvcompress.analysis.recommend.timing import Speed, compare_speed

_LEAST_GENERATED = 9  # generated tokens from which on they are what is forced
_MOST_STEPS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """What a compression may cost.

    Args:
        kl: most mean KL(full || compressed) of the next token, in nats, at least 0 and finite.
        top1: least share of positions with the same likeliest token, in [0, 1].
    """

    kl: float = 0.1
    top1: float = 0.9

    def __post_init__(self) -> None:
        """Checks the bounds."""
        if not (0 <= self.kl < inf and 0 <= self.top1 <= 1):
            raise ValueError(
                "a tolerance has a finite kl of at least 0 and top1 in [0, 1]; got "
                f"kl={self.kl!r} and top1={self.top1!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a capture's tokens are used.

    Attributes:
        context: first tokens, which are the prompt.
        steps: predictions after it that are compared.
    """

    context: int
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredBudget:
    """A budget and what it costs.

    Attributes:
        budget: the budget.
        kl: mean of KL(full || compressed) of the next token, in nats.
        top1: share of positions with the same likeliest token.
        kv_bytes: bytes held in the end, bookkeeping included.
        full_bytes: bytes of the full cache.
        within: whether both are within the tolerance.
    """

    budget: Budget
    kl: float
    top1: float
    kv_bytes: int
    full_bytes: int
    within: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredStrategy:
    """A strategy and what it costs.

    Attributes:
        strategy: the strategy.
        ladder: its budgets, largest first.
        chosen: index of the smallest budget such that it and all larger ones are within the tolerance; None: there is
            none.
        speed: of the chosen budget; None where there is none.
    """

    strategy: Strategy
    ladder: tuple[MeasuredBudget, ...]
    chosen: int | None
    speed: Speed | None

    @property
    def best(self) -> MeasuredBudget | None:
        """The chosen budget."""
        return None if self.chosen is None else self.ladder[self.chosen]


def setting_for(tokens: int, prompt_tokens: int) -> Setting:
    """Where a capture's tokens are cut into a prompt and what is forced.

    The generated tokens are forced, up to 64; where there are fewer than nine, the last part of the text instead, a
    quarter and at most 64 tokens.

    Args:
        tokens: all tokens of the capture.
        prompt_tokens: those of its prompt.

    Raises:
        ValueError: fewer than 16 tokens.
    """
    if tokens < 16:
        raise ValueError(f"a capture must have at least 16 tokens to be measured on; it has {tokens}. Capture more.")
    generated = tokens - prompt_tokens
    if prompt_tokens >= 8 and generated >= _LEAST_GENERATED:
        return Setting(context=prompt_tokens, steps=min(generated - 1, _MOST_STEPS))
    steps = min(tokens // 4, _MOST_STEPS)
    return Setting(context=tokens - steps - 1, steps=steps)


def measure(
    model: PreTrainedModel,
    ids: torch.Tensor,
    setting: Setting,
    strategies: Sequence[Strategy],
    tolerance: Tolerance,
    *,
    rounds: int = 5,
    advance: Callable[[], Any] = lambda: None,
) -> list[MeasuredStrategy]:
    """Runs every budget of every strategy, then times the budgets that were chosen.

    Args:
        model: the model of the capture, in evaluation mode.
        ids: int64 ``[tokens]``, the capture's tokens.
        setting: see :func:`setting_for`.
        strategies: what could be done.
        tolerance: what it may cost.
        rounds: timed runs of each.
        advance: called after each budget.

    Raises:
        UnsupportedModelError: the model cannot be compressed.
    """
    window = ids[: setting.context + setting.steps + 1]
    ladders = []
    for strategy in strategies:
        ladder = []
        for budget in strategy.budgets:
            ladder.append(_measure_budget(model, window, setting, budget, tolerance))
            advance()
        ladders.append(tuple(ladder))
    chosen = [farthest([step.within for step in ladder]) for ladder in ladders]
    picked = [ladder[place].budget for ladder, place in zip(ladders, chosen, strict=True) if place is not None]
    makers = [budget.make for budget in picked]
    speeds = iter(compare_speed(model, makers, window, context=setting.context, rounds=rounds) if makers else [])
    return [
        MeasuredStrategy(strategy=strategy, ladder=ladder, chosen=place, speed=None if place is None else next(speeds))
        for strategy, ladder, place in zip(strategies, ladders, chosen, strict=True)
    ]


def farthest(within: Sequence[bool]) -> int | None:
    """Index of the last of the leading True values: how far one can go without a step outside; None for none."""
    outside = next((place for place, inside in enumerate(within) if not inside), len(within))
    return outside - 1 if outside else None


def _measure_budget(
    model: PreTrainedModel, window: torch.Tensor, setting: Setting, budget: Budget, tolerance: Tolerance
) -> MeasuredBudget:
    def make() -> Cache:
        return budget.make(model)

    forced = force(model, make, window[None], context=setting.context)
    kl, top1 = float(forced.divergence.mean()), float(forced.agreement.mean())
    return MeasuredBudget(
        budget=budget,
        kl=kl,
        top1=top1,
        kv_bytes=forced.kv_bytes,
        full_bytes=forced.full_bytes,
        within=kl <= tolerance.kl and top1 >= tolerance.top1,
    )
