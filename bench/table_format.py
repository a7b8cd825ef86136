"""How a table and its figures are written in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Run = Mapping[str, Any]


def markdown(header: list[str], rows: list[list[str]], texts: int = 1) -> str:
    """A Markdown table; the first ``texts`` columns to the left, the others to the right."""
    align = ["---"] * texts + ["---:"] * (len(header) - texts)
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, align, *rows])


def origin(run: Run) -> str:
    """One line on where a run was made."""
    parts = [run.get("time_utc", "")[:10], str(run.get("cpu") or run.get("device", ""))]
    if run.get("commit"):
        parts.insert(0, f"commit {run['commit'][:7]}{' with changes' if run.get('dirty') else ''}")
    if "clock" in run:
        parts.append(f"{run['clock']}, {run['threads']} thread{'s' if run['threads'] > 1 else ''}")
    parts += [f"torch {run.get('torch')}", f"transformers {run.get('transformers')}"]
    return f"\nMeasured: {', '.join(parts)}.\n"


def figure(value: float) -> str:
    """Three digits, never with an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def percent(share: float, interval: list[float]) -> str:
    """A share with its interval, in percent."""
    return f"{100 * share:.0f} [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]"


def points(gain: float, interval: list[float]) -> str:
    """A difference of shares with its interval, in points."""
    return f"{100 * gain:+.0f} [{100 * interval[0]:+.0f}, {100 * interval[1]:+.0f}]"
