"""Recommendations for a capture: pattern, strategies, what they cost where that was measured, and which to take."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from kvcompress.analysis.recommend.measuring import MeasuredStrategy, Setting, Tolerance
from kvcompress.analysis.recommend.pattern import Pattern
from kvcompress.analysis.recommend.strategies import Budget, Strategy

SCHEMA = "kvcompress.recommendations/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What was measured, and on what.

    Attributes:
        model: name, device and dtype of the model.
        setting: how the capture's tokens were used.
        strategies: the strategies with their costs.
    """

    model: dict[str, str]
    setting: Setting
    strategies: tuple[MeasuredStrategy, ...]

    @property
    def best(self) -> MeasuredStrategy | None:
        """The strategy that holds the fewest bytes within the tolerance; of equals, the one of least divergence."""
        found = [(each.best.kv_bytes, each.best.kl, each) for each in self.strategies if each.best is not None]
        return min(found, key=lambda entry: entry[:2])[2] if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendations:
    """What is recommended for one sample of a capture.

    Attributes:
        sample: its number.
        capture_model: what the capture calls its model.
        prompt_tokens: tokens of its prompt.
        pattern: of its attention.
        strategies: what could be done, those that suit the pattern first.
        tolerance: what it may cost.
        measurement: what it does cost; None where nothing was measured.
        why_not_measured: the reason for that.
    """

    sample: int
    capture_model: str
    prompt_tokens: int
    pattern: Pattern
    strategies: tuple[Strategy, ...]
    tolerance: Tolerance
    measurement: Measurement | None
    why_not_measured: str | None

    def __post_init__(self) -> None:
        """Checks that a missing measurement has its reason."""
        if (self.measurement is None) != (self.why_not_measured is not None):
            raise ValueError("give exactly one of measurement and why_not_measured; a missing measurement says why")

    def to_json(self) -> dict[str, Any]:
        """Everything, as in ``compression_recommendations.json``."""
        measured = self.measurement
        return {
            "schema": SCHEMA,
            "sample": self.sample,
            "capture_model": self.capture_model,
            "measured": measured is not None,
            "why_not_measured": self.why_not_measured,
            "pattern": self.pattern.to_json(),
            "tolerance": asdict(self.tolerance),
            "prompt_tokens": self.prompt_tokens,
            "context": None if measured is None else measured.setting.context,
            "steps": None if measured is None else measured.setting.steps,
            "model": None if measured is None else measured.model,
            "strategies": [_unmeasured(strategy) for strategy in self.strategies]
            if measured is None
            else [_measured(strategy) for strategy in measured.strategies],
            "recommendation": None if measured is None or measured.best is None else _recommendation(measured.best),
        }


def _head(strategy: Strategy) -> dict[str, Any]:
    return {
        "strategy": strategy.name,
        "policy": strategy.policy,
        "why": strategy.why,
        "suits_pattern": strategy.suits_pattern,
    }


def _budget(budget: Budget) -> dict[str, Any]:
    return {
        "cache_size": budget.cache_size,
        "parameters": dict(budget.parameters),
        "expected_ratio": budget.expected_ratio,
    }


def _unmeasured(strategy: Strategy) -> dict[str, Any]:
    nothing = dict.fromkeys(("kl", "top1", "kv_bytes", "full_bytes", "within_tolerance"))
    ladder = [_budget(budget) | nothing for budget in strategy.budgets]
    return {**_head(strategy), "ladder": ladder, "chosen": None, "speed": None}


def _measured(found: MeasuredStrategy) -> dict[str, Any]:
    ladder = [
        {
            **_budget(step.budget),
            "kl": step.kl if isfinite(step.kl) else None,
            "top1": step.top1,
            "kv_bytes": step.kv_bytes,
            "full_bytes": step.full_bytes,
            "within_tolerance": step.within,
        }
        for step in found.ladder
    ]
    speed = None if found.speed is None else found.speed.to_json()
    return {**_head(found.strategy), "ladder": ladder, "chosen": found.chosen, "speed": speed}


def _recommendation(found: MeasuredStrategy) -> dict[str, Any] | None:
    step = found.best
    if step is None:
        return None
    return {
        "strategy": found.strategy.name,
        "policy": found.strategy.policy,
        **_budget(step.budget),
        "bytes_ratio": 1 - step.kv_bytes / step.full_bytes,
        "kl": step.kl,
        "top1": step.top1,
        "speed": None if found.speed is None else found.speed.to_json(),
    }
