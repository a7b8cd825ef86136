"""Recommendations as a text for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kvcompress.analysis.recommend.measuring import MeasuredBudget, MeasuredStrategy
from kvcompress.analysis.recommend.pattern import FEW_KEYS, LOCAL_MASS, Pattern
from kvcompress.analysis.recommend.recommendations import Measurement, Recommendations
from kvcompress.analysis.recommend.strategies import Strategy

NOT_MEASURED = "NOT MEASURED"


def readable(found: Recommendations) -> str:
    """The text of ``compression_recommendations.txt``."""
    lines = [
        f"Compression recommendations for sample {found.sample}",
        f"model of the capture: {_plain(found.capture_model)}; prompt: {found.prompt_tokens} tokens",
        "",
        *_verdict(found),
        "",
        *_pattern_lines(found.pattern),
        "",
    ]
    if found.measurement is None:
        lines += [line for strategy in found.strategies for line in _proposal(strategy)]
    else:
        lines += [line for each in found.measurement.strategies for line in _table(each)]
    return "\n".join(lines).rstrip() + "\n"


def _verdict(found: Recommendations) -> Iterator[str]:
    within = f"KL at most {found.tolerance.kl:g} nats and at least {found.tolerance.top1:.0%} equal likeliest tokens"
    if found.measurement is None:
        yield f"{NOT_MEASURED}: {found.why_not_measured}"
        yield "What follows are proposals from the attention pattern alone; none of them has been run."
        return
    yield from _measured_on(found.measurement)
    best = found.measurement.best
    if best is None or best.best is None:
        yield f"RECOMMENDED: none. No budget of any strategy stays within the tolerance ({within})."
        return
    step, speed = best.best, best.speed
    yield f"RECOMMENDED: {best.strategy.policy} ({best.strategy.name}), {_parameters(step.budget.parameters)}"
    yield (
        f"  the smallest cache within the tolerance ({within}): {_size(step)}, KL {step.kl:.4f} nats, "
        f"{step.top1:.1%} equal"
    )
    if speed is not None:
        yield (
            f"  speed beside the full cache: prefill x{speed.prefill_ratio:.2f}, decode x{speed.decode_ratio:.2f} "
            f"(above 1 is faster; medians of {speed.rounds} rounds)"
        )


def _measured_on(measurement: Measurement) -> Iterator[str]:
    model, setting = measurement.model, measurement.setting
    yield (
        f"Measured with {_plain(model['name'])} ({model['device']}, {model['dtype']}) on the capture's own tokens: "
        f"{setting.context} as the prompt, {setting.steps} predictions after it."
    )


def _pattern_lines(pattern: Pattern) -> Iterator[str]:
    local = pattern.recent_mass + pattern.sink_mass
    yield f"Attention pattern: {pattern.name} (means over {pattern.events} events, all layers and heads)"
    yield (
        f"  on the {pattern.recent_tokens} nearest tokens {pattern.recent_mass:.1%}, on the first "
        f"{pattern.sink_tokens} {pattern.sink_mass:.1%}: together {local:.1%} (recency from {LOCAL_MASS:.0%})"
    )
    yield f"  keys that hold 90 % of the mass: {pattern.coverage_share:.1%} (sparse up to {FEW_KEYS:.0%})"
    yield f"  entropy: {pattern.entropy_normalised:.1%} of the largest possible"
    if pattern.note is not None:
        yield f"  note: {pattern.note}"


def _title(strategy: Strategy) -> str:
    suits = ", suits the pattern" if strategy.suits_pattern else ""
    return f"{strategy.name}: {strategy.policy}{suits}. Good where {strategy.why}."


def _proposal(strategy: Strategy) -> Iterator[str]:
    yield _title(strategy)
    for budget in strategy.budgets:
        parameters = _parameters(budget.parameters)
        yield f"  removes {budget.expected_ratio:6.1%}  {parameters}  ({NOT_MEASURED.lower()})"
    yield ""


def _table(found: MeasuredStrategy) -> Iterator[str]:
    yield _title(found.strategy)
    yield f"  {'cache size':>10}  {'removed':>8}  {'KL, nats':>9}  {'equal':>7}  {'bytes held':>24}"
    for place, step in enumerate(found.ladder):
        mark = "<- how far you can go" if place == found.chosen else "" if step.within else "outside"
        yield (
            f"  {step.budget.cache_size:>10}  {step.budget.expected_ratio:>8.1%}  {step.kl:>9.4f}  {step.top1:>7.1%}  "
            f"{_size(step):>24}  {mark}"
        ).rstrip()
    if found.best is None:
        yield "  the largest budget is outside the tolerance already"
    else:
        yield f"  parameters there: {_parameters(found.best.budget.parameters)}"
    if found.speed is not None:
        speed = found.speed
        yield f"  speed there: prefill x{speed.prefill_ratio:.2f}, decode x{speed.decode_ratio:.2f} of the full cache's"
    yield ""


def _size(step: MeasuredBudget) -> str:
    return f"{step.kv_bytes / 1024:.0f} of {step.full_bytes / 1024:.0f} KiB ({step.kv_bytes / step.full_bytes:.0%})"


def _parameters(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in parameters.items())


def _plain(text: str) -> str:
    """A name from a file on one line, without control characters."""
    return " ".join("".join(mark if mark.isprintable() else " " for mark in text).split())
