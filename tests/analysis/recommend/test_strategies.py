"""What is proposed: the pattern's own first, budgets that every policy can be made with, largest first."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.analysis.recommend.pattern import Pattern
from kvcompress.analysis.recommend.strategies import parameters_at, propose
from kvcompress.policies.base import Wrapper
from kvcompress.policies.registry import POLICIES, make_policy


def pattern(name: Any) -> Pattern:
    return Pattern(
        name=name,
        recent_mass=0.5,
        sink_mass=0.1,
        coverage_share=0.1,
        entropy_normalised=0.5,
        events=1,
        recent_tokens=32,
        sink_tokens=4,
        note=None,
    )


@pytest.mark.parametrize(("name", "first"), [("recency", "fixed_window"), ("sparse", "topk"), ("uniform", "pooling")])
def test_the_pattern_s_own_strategy_comes_first(name: str, first: str) -> None:
    found = propose(pattern(name), 512)
    assert found[0].name == first
    assert {strategy.name for strategy in found} == {"fixed_window", "topk", "policy", "pooling"}
    assert {strategy.policy for strategy in found} == {"streaming_llm", "snapkv", "h2o", "cake", "pooling"}
    assert [strategy.suits_pattern for strategy in found] == sorted(
        (strategy.suits_pattern for strategy in found), reverse=True
    )


@given(st.integers(16, 5000), st.sampled_from(["recency", "sparse", "uniform"]))
def test_budgets_fall_and_say_what_they_remove(prompt_tokens: int, name: str) -> None:
    for strategy in propose(pattern(name), prompt_tokens):
        sizes = [budget.cache_size for budget in strategy.budgets]
        assert sizes == sorted(set(sizes), reverse=True)
        for budget in strategy.budgets:
            assert 0 < budget.cache_size < prompt_tokens
            assert budget.expected_ratio == pytest.approx(1 - budget.cache_size / prompt_tokens)


OWN = sorted(name for name, policy in POLICIES.items() if name != "full" and not issubclass(policy, Wrapper))


@given(st.integers(1, 300), st.sampled_from(OWN))
def test_parameters_can_be_made_and_leave_room(cache_size: int, name: str) -> None:
    parameters = parameters_at(name, cache_size, {})
    if parameters is not None:
        make_policy(name, **parameters)
        assert parameters["window_size"] + parameters["sink_tokens"] < cache_size


def test_the_capture_s_own_policy_takes_part_with_its_parameters() -> None:
    own = {"name": "cake", "cache_size": 128, "window_size": 8, "sink_tokens": 2, "tau1": 1.6, "gamma": 50.0}
    cake = next(strategy for strategy in propose(pattern("sparse"), 400, own) if strategy.policy == "cake")
    for budget in cake.budgets:
        assert budget.parameters["tau1"] == 1.6
        assert budget.parameters["gamma"] == 50.0
        assert budget.parameters["window_size"] <= 8
        assert budget.parameters["cache_size"] == budget.cache_size
    tova = {"name": "tova", "compression_ratio": 0.5}
    assert "tova" in {strategy.policy for strategy in propose(pattern("sparse"), 400, tova)}
    for unknown in ({"name": "adakv", "base": {}}, {"name": "made_up"}, {"name": "full"}):
        assert len(propose(pattern("sparse"), 400, unknown)) == 5


def test_bad_requests_are_refused() -> None:
    for fractions in ([], [0.0], [1.0], [1.5]):
        with pytest.raises(ValueError, match="those of the prompt KEPT"):
            propose(pattern("sparse"), 400, fractions=fractions)
    with pytest.raises(ValueError, match="leaves no budget to try"):
        propose(pattern("sparse"), 2)
