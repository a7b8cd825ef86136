"""Measured strategies: what forcing says, how far one can go, and speed by rounds."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache

from kvcompress import CompressedCache, StreamingLLM
from kvcompress.analysis.fidelity.fidelity import fidelity
from kvcompress.analysis.recommend.measuring import Tolerance, farthest, measure, setting_for
from kvcompress.analysis.recommend.pattern import find_pattern
from kvcompress.analysis.recommend.readable import readable
from kvcompress.analysis.recommend.recommendations import Measurement, Recommendations
from kvcompress.analysis.recommend.strategies import propose
from kvcompress.analysis.recommend.timing import compare_speed

CONTEXT, STEPS = 60, 9


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(50, (CONTEXT + STEPS + 1,), generator=torch.Generator().manual_seed(1))


@given(st.lists(st.booleans(), max_size=8))
def test_one_goes_as_far_as_no_step_is_outside(within: list[bool]) -> None:
    place = farthest(within)
    if place is None:
        assert not within or not within[0]
    else:
        assert all(within[: place + 1])
        assert place + 1 == len(within) or not within[place + 1]


@given(st.integers(16, 400), st.integers(0, 400))
def test_tokens_are_cut_so_that_all_fit(tokens: int, prompt_tokens: int) -> None:
    prompt_tokens = min(prompt_tokens, tokens)
    setting = setting_for(tokens, prompt_tokens)
    assert setting.context >= 8
    assert 1 <= setting.steps <= 64
    assert setting.context + setting.steps + 1 <= tokens
    if prompt_tokens >= 8 and tokens - prompt_tokens >= 9:
        assert setting.context == prompt_tokens


def test_short_captures_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 tokens to be measured on; it has 15"):
        setting_for(15, 4)


def test_a_ladder_is_what_fidelity_says(model: Any, ids: torch.Tensor, made_up: Any) -> None:
    setting = setting_for(len(ids), CONTEXT)
    strategies = propose(find_pattern(made_up(recent=0.9, sink=0.1, covered=1.0)), CONTEXT, fractions=(0.5, 0.25))
    ticks: list[int] = []
    found = measure(
        model, ids, setting, strategies, Tolerance(kl=1e9, top1=0.0), rounds=1, advance=lambda: ticks.append(1)
    )
    assert len(ticks) == sum(len(strategy.budgets) for strategy in strategies)
    assert [each.strategy for each in found] == list(strategies)
    streaming = found[0]
    assert streaming.strategy.policy == "streaming_llm"
    for step in streaming.ladder:

        def make(size: int = step.budget.cache_size) -> CompressedCache:
            return CompressedCache(model, StreamingLLM(cache_size=size))

        close = fidelity(model, make, ids[None], context=CONTEXT)
        assert step.kl == pytest.approx(close.kl, rel=1e-9)
        assert (step.top1, step.kv_bytes, step.full_bytes) == (close.top1, close.kv_bytes, close.full_bytes)
    for each in found:  # everything is within this tolerance
        assert each.chosen == len(each.ladder) - 1
        assert each.speed is not None
        assert each.speed.decode_ratio > 0
    best = Measurement(model={}, setting=setting, strategies=tuple(found)).best
    assert best is not None
    assert best.best is not None
    assert best.best.kv_bytes == min(each.best.kv_bytes for each in found if each.best is not None)


def test_nothing_within_the_tolerance_is_not_recommended(model: Any, ids: torch.Tensor, made_up: Any) -> None:
    pattern = find_pattern(made_up(recent=0.1, sink=0.1, covered=1.0))
    strategies = propose(pattern, CONTEXT, fractions=(0.5, 0.25))
    tolerance = Tolerance(kl=0.0, top1=1.0)
    setting = setting_for(len(ids), CONTEXT)
    found = measure(model, ids, setting, strategies, tolerance, rounds=1)
    measurement = Measurement(
        model={"name": "tiny", "device": "cpu", "dtype": "float64"}, setting=setting, strategies=tuple(found)
    )
    assert measurement.best is None
    result = Recommendations(
        sample=0,
        capture_model="tiny",
        prompt_tokens=CONTEXT,
        pattern=pattern,
        strategies=tuple(strategies),
        tolerance=tolerance,
        measurement=measurement,
        why_not_measured=None,
    )
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert content["measured"] is True
    assert content["recommendation"] is None
    assert all(strategy["chosen"] is None and strategy["speed"] is None for strategy in content["strategies"])
    assert "RECOMMENDED: none" in readable(result)
    assert "outside" in readable(result)


def test_what_was_not_measured_says_so_in_both_forms(made_up: Any) -> None:
    pattern = find_pattern(made_up(recent=0.1, sink=0.1, covered=1.0))
    strategies = propose(pattern, 400)
    result = Recommendations(
        sample=2,
        capture_model="evil\n\x1b[31mmodel",
        prompt_tokens=400,
        pattern=pattern,
        strategies=tuple(strategies),
        tolerance=Tolerance(),
        measurement=None,
        why_not_measured="no model was given",
    )
    text = readable(result)
    assert "NOT MEASURED: no model was given" in text
    assert "RECOMMENDED" not in text
    assert "evil [31mmodel" in text
    assert text.isprintable() or all(line.isprintable() for line in text.splitlines())
    for strategy in strategies:
        for budget in strategy.budgets:
            assert f"{budget.expected_ratio:6.1%}" in text
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert content["measured"] is False
    assert content["why_not_measured"] == "no model was given"
    assert content["recommendation"] is None
    steps = [step for strategy in content["strategies"] for step in strategy["ladder"]]
    assert steps
    assert all(step["kl"] is None and step["within_tolerance"] is None for step in steps)
    with pytest.raises(ValueError, match="a missing measurement says why"):
        Recommendations(
            sample=0,
            capture_model="",
            prompt_tokens=1,
            pattern=pattern,
            strategies=(),
            tolerance=Tolerance(),
            measurement=None,
            why_not_measured=None,
        )


def test_speed_is_taken_round_by_round(model: Any, ids: torch.Tensor) -> None:
    def ticking() -> Iterator[float]:
        """Give a clock that runs twice as fast while the second contender has its turn."""
        now = 0.0
        while True:
            now += 1.0
            yield now

    ticks = ticking()
    [speed] = compare_speed(
        model,
        [lambda model: DynamicCache(config=model.config)],
        ids,
        context=CONTEXT,
        rounds=3,
        decode_steps=2,
        clock=lambda: next(ticks),
    )
    # Every span between two readings of this clock is one second.
    assert (speed.prefill_ratio, speed.decode_ratio, speed.prefill_seconds, speed.decode_seconds) == (1, 1, 1, 1)
    assert (speed.rounds, speed.decode_steps) == (3, 2)


def test_bad_requests_are_refused(model: Any, ids: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="context below the number of tokens"):
        compare_speed(model, [], ids, context=len(ids))
    with pytest.raises(ValueError, match="rounds=0"):
        compare_speed(model, [], ids, context=4, rounds=0)
    for bad in ({"kl": -1.0}, {"top1": 1.1}, {"kl": float("nan")}, {"kl": float("inf")}):
        with pytest.raises(ValueError, match="a tolerance has a finite kl of at least 0"):
            Tolerance(**bad)
