"""What ``kvcompress generate`` tells in the end, for people and as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.bar import Bar
from rich.console import Console
from rich.rule import Rule
from rich.table import Table

from kvcompress.commands.runs import Run
from kvcompress.engine.report import CacheReport
from kvcompress.policies.base import Policy
from kvcompress.policies.describe import policy_parameters

if TYPE_CHECKING:
    from kvcompress.commands.generation import Comparison, Outcome

SCHEMA = "kvcompress.generate/1"
MOST_BARS = 32  # more layers than that share bars
_BAR_WIDTH = 40


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The outcome as what ``--json`` prints."""
    model, report = outcome.loaded.model, outcome.report
    return {
        "schema": SCHEMA,
        "model": outcome.loaded.name,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "policy": policy_parameters(outcome.policy),
        "prompt_tokens": outcome.prompt_tokens,
        **_run_json(outcome.run),
        "kv_bytes": {
            "held": report.num_bytes,
            "full": report.full_bytes,
            "saved": report.full_bytes - report.num_bytes,
            "saved_fraction": report.saved,
        },
        "seen_tokens": report.seen,
        "layers": [{"layer": layer.layer_idx, "kept_tokens": layer.tokens} for layer in report.layers],
        "full": None if outcome.comparison is None else _comparison_json(outcome.comparison),
        "warnings": outcome.warnings,
    }


def _run_json(run: Run) -> dict[str, Any]:
    return {
        "text": run.text,
        "new_tokens": len(run.ids),
        "ended": run.ended,
        "time_to_first_token_s": run.first_seconds,
        "decode_tokens_per_s": run.tokens_per_second,
    }


def _comparison_json(comparison: Comparison) -> dict[str, Any]:
    divergence = comparison.divergence
    return {
        **_run_json(comparison.run),
        "kv_bytes": comparison.num_bytes,
        "agreement": asdict(comparison.agreement),
        "next_token": None
        if divergence is None
        else {
            "steps": divergence.steps,
            "mean_kl_nats": _finite(divergence.mean_kl),
            "max_kl_nats": _finite(divergence.max_kl),
            "top1_agreement": divergence.top1,
        },
    }


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def show(outcome: Outcome, console: Console) -> None:
    """Prints the outcome for people."""
    console.print(Rule(style="dim"))
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(outcome):
        facts.add_row(name, value)
    console.print(facts, markup=False)
    console.print()
    console.print(f"tokens kept per layer, of {outcome.report.seen} seen", markup=False)
    console.print(kept_chart(outcome.report))


def _facts(outcome: Outcome) -> list[tuple[str, str]]:
    report, run = outcome.report, outcome.run
    facts = [
        ("policy", describe_policy(outcome.policy)),
        ("tokens", f"{outcome.prompt_tokens} in the prompt, {len(run.ids)} new"),
        ("first token", f"{run.first_seconds:.3f} s"),
        ("decode", _speed(run)),
        ("KV cache", describe_bytes(report)),
    ]
    return facts if outcome.comparison is None else facts + _comparison_facts(outcome.comparison)


def _comparison_facts(comparison: Comparison) -> list[tuple[str, str]]:
    run, common, divergence = comparison.run, comparison.agreement, comparison.divergence
    facts = [
        ("", ""),
        ("full cache", f"{_speed(run)}, first token {run.first_seconds:.3f} s, {size(comparison.num_bytes)}"),
        ("its text", run.text),
        ("equal tokens", f"{common.equal} of {common.tokens}, the first {common.leading} in a row"),
    ]
    if divergence is not None:
        facts.append(
            (
                "next token",
                f"KL(full || compressed) {divergence.mean_kl:.4g} nats on average, "
                f"{divergence.max_kl:.4g} at most; "
                f"same likeliest token in {divergence.top1:.1%} of {divergence.steps} steps",
            )
        )
    return facts


def _speed(run: Run) -> str:
    speed = run.tokens_per_second
    return "one token only, so no speed" if speed is None else f"{speed:.1f} tokens/s"


def describe_policy(policy: Policy) -> str:
    """A policy's name and parameters in one line."""
    given = ", ".join(f"{name}={value}" for name, value in asdict(policy).items() if value is not None)
    return f"{policy.name} ({given})"


def describe_bytes(report: CacheReport) -> str:
    """Bytes held and saved in one line."""
    held = f"{size(report.num_bytes)} held of {size(report.full_bytes)}"
    if report.saved < 0:
        return f"{held}: {-report.saved:.1%} more, for the bookkeeping and the slots set aside"
    return f"{held}: {report.saved:.1%} saved"


def size(count: int) -> str:
    """Bytes with a unit."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.2f} {units[0]}"


def kept_chart(report: CacheReport) -> Table:
    """A bar per layer; where a model has many, neighbours share one."""
    layers = report.layers
    width = math.ceil(len(layers) / MOST_BARS)
    chart = Table.grid(padding=(0, 1))
    chart.add_column(justify="right")
    chart.add_column(width=_BAR_WIDTH)
    chart.add_column(justify="right")
    for start in range(0, len(layers), width or 1):
        part = layers[start : start + width]
        first, last = part[0].layer_idx, part[-1].layer_idx
        mean = sum(layer.tokens for layer in part) / len(part)
        label = str(first) if first == last else f"{first}-{last}"
        chart.add_row(label, Bar(max(report.seen, 1), 0, mean, color="cyan"), f"{mean:.0f}")
    return chart
