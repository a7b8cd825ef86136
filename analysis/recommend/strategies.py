"""Strategies for a capture: what could be done, why, and with which parameters at each budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from kvcompress.analysis.recommend.pattern import Pattern, PatternName
from kvcompress.analysis.recommend.pooling import pooling_for
from kvcompress.engine.cache import CompressedCache
from kvcompress.policies.base import Wrapper
from kvcompress.policies.registry import POLICIES, make_policy, parameters_of

StrategyName = Literal["fixed_window", "topk", "policy", "pooling"]
MakeCache = Callable[[PreTrainedModel], Cache]

_ENGINE_POLICIES: dict[str, StrategyName] = {
    "streaming_llm": "fixed_window",
    "snapkv": "topk",
    "h2o": "topk",
    "cake": "policy",
}
FRACTIONS = (0.75, 0.5, 0.375, 0.25, 0.125, 0.0625)  # of the prompt that is kept
_WHY: Mapping[StrategyName, str] = {
    "fixed_window": "the first tokens and the latest ones take most of the attention",
    "topk": "few tokens take most of the attention, wherever they are",
    "policy": "layers and heads differ, and a policy of the engine may give each its own share",
    "pooling": "attention is spread, so that a merged token loses less than a dropped one",
}
_SUITS: Mapping[StrategyName, PatternName | None] = {
    "fixed_window": "recency",
    "topk": "sparse",
    "policy": None,
    "pooling": "uniform",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """One budget of a strategy.

    Attributes:
        cache_size: tokens kept per layer on average.
        parameters: of the policy, or of the pooling.
        expected_ratio: fraction of the prompt's tokens that is REMOVED.
        make: makes its empty cache for a model.
    """

    cache_size: int
    parameters: Mapping[str, Any]
    expected_ratio: float
    make: MakeCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """Something that could be done.

    Attributes:
        name: the kind.
        policy: a policy of the engine, or ``"pooling"``.
        why: when it is a good idea.
        suits_pattern: whether the capture's pattern speaks for it.
        budgets: largest first.
    """

    name: StrategyName
    policy: str
    why: str
    suits_pattern: bool
    budgets: tuple[Budget, ...]


def propose(
    pattern: Pattern,
    prompt_tokens: int,
    own_policy: Mapping[str, Any] | None = None,
    fractions: Sequence[float] = FRACTIONS,
) -> list[Strategy]:
    """Strategies with their budgets, those that suit the pattern first.

    Args:
        pattern: of the capture.
        prompt_tokens: tokens that are compressed.
        own_policy: name and parameters of the capture's policy; it is proposed too, with its own parameters. A wrapper
            is left out: a capture does not say what it wraps.
        fractions: of the prompt that are kept, each in (0, 1).

    Raises:
        ValueError: a fraction out of range, or a prompt that leaves no budget.
    """
    if not fractions or not all(0 < fraction < 1 for fraction in fractions):
        raise ValueError(f"fractions are those of the prompt KEPT and must lie in (0, 1); got {list(fractions)}")
    sizes = sorted({ceil(fraction * prompt_tokens) for fraction in fractions} - {prompt_tokens}, reverse=True)
    own = _own_parameters(own_policy)
    named = _ENGINE_POLICIES | {policy: _ENGINE_POLICIES.get(policy, "policy") for policy in own}
    found = [
        _strategy(name, policy, pattern, _policy_budgets(policy, sizes, prompt_tokens, own.get(policy, {})))
        for policy, name in named.items()
    ]
    found.append(_strategy("pooling", "pooling", pattern, _pooling_budgets(sizes, prompt_tokens)))
    found = [strategy for strategy in found if strategy.budgets]
    if not found:
        raise ValueError(
            f"a prompt of {prompt_tokens} tokens leaves no budget to try at fractions {list(fractions)}; capture a "
            "longer prompt"
        )
    return sorted(found, key=lambda strategy: not strategy.suits_pattern)


def parameters_at(policy: str, cache_size: int, own: Mapping[str, Any]) -> dict[str, Any] | None:
    """Parameters of a policy at a budget; None where the budget is too small for it.

    Args:
        policy: a key of ``POLICIES``, no wrapper.
        cache_size: tokens kept per layer on average.
        own: parameters to start from, of a capture; may be empty. The window is at most a quarter of the budget (half
            for H2O, as published).
    """
    given = parameters_of(policy) | dict(own)
    window, sinks = given["window_size"], given["sink_tokens"]
    if policy == "h2o" and "window_size" not in own:
        window = cache_size // 2
    elif window > 1:
        window = min(window, cache_size // 4)
    if window < 1 or cache_size <= window + sinks:
        return None
    return {"cache_size": cache_size, **own, "window_size": window, "sink_tokens": sinks}


def _own_parameters(own_policy: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """By name, the parameters that the capture's policy can be made with again, sizes left out; else empty."""
    name = None if own_policy is None else own_policy.get("name")
    if own_policy is None or name not in POLICIES or name == "full" or issubclass(POLICIES[name], Wrapper):
        return {}
    sizes = ("cache_size", "compression_ratio")
    return {name: {key: own_policy[key] for key in parameters_of(name) if key in own_policy and key not in sizes}}


def _strategy(name: StrategyName, policy: str, pattern: Pattern, budgets: list[Budget]) -> Strategy:
    return Strategy(
        name=name,
        policy=policy,
        why=_WHY[name],
        suits_pattern=_SUITS[name] == pattern.name,
        budgets=tuple(budgets),
    )


def _policy_budgets(policy: str, sizes: list[int], prompt_tokens: int, own: Mapping[str, Any]) -> list[Budget]:
    budgets = []
    for size in sizes:
        parameters = parameters_at(policy, size, own)
        if parameters is not None:
            budgets.append(
                Budget(
                    cache_size=size,
                    parameters=parameters,
                    expected_ratio=1 - size / prompt_tokens,
                    make=_policy_cache(policy, parameters),
                )
            )
    return budgets


def _policy_cache(policy: str, parameters: Mapping[str, Any]) -> MakeCache:
    made = make_policy(policy, **parameters)
    return lambda model: CompressedCache(model, made)


def _pooling_budgets(sizes: list[int], prompt_tokens: int) -> list[Budget]:
    budgets: list[Budget] = []
    for size in sizes:
        pooling = pooling_for(prompt_tokens, size)
        if pooling is None:
            continue
        middle = prompt_tokens - pooling.sink_tokens - pooling.recent_tokens
        kept = pooling.sink_tokens + pooling.recent_tokens + ceil(middle / pooling.group_size)
        parameters = {
            "group_size": pooling.group_size,
            "sink_tokens": pooling.sink_tokens,
            "recent_tokens": pooling.recent_tokens,
        }
        if budgets and budgets[-1].cache_size == kept:  # the same groups again
            continue
        budgets.append(
            Budget(cache_size=kept, parameters=parameters, expected_ratio=1 - kept / prompt_tokens, make=pooling.cache)
        )
    return budgets
