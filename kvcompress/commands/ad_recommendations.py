"""The text of ``compression_recommendations.txt`` that ``kvcompress ad analyze`` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvcompress.commands.ad_strategies import table

MOST_LOST = 0.05  # share of the late return


def recommendations(content: Mapping[str, Any], capture: Path) -> str:
    """What to compress a history with: the pattern of the capture, and what was measured.

    Args:
        content: rows of an evaluation under ``cases``; the uncompressed histories' first.
        capture: folder of the capture.
    """
    from kvcompress.analysis.recommend.pattern import find_pattern
    from kvcompress.analysis.summary.reader import list_samples, read_sample

    pattern = find_pattern(read_sample(capture, list_samples(capture)[0]))
    rows = content["cases"]
    lines = [
        "Compression of an in-context agent's history",
        "",
        f"Attention pattern: {pattern.name}. On the {pattern.recent_tokens} nearest tokens {pattern.recent_mass:.1%}, "
        f"on the first {pattern.sink_tokens} {pattern.sink_mass:.1%}; 90 % of the mass is on "
        f"{pattern.coverage_share:.1%} of the keys.",
        "",
        _verdict(rows),
        "",
        f"Measured on {rows[0]['rooms']} rooms with held-out goals, {content['episodes']} episodes each:",
        *table(rows),
        "",
        "late return: mean of the last five episodes; lost: of what the whole history gains; ms/step: processor time",
        "of one thread for all rooms, with a history of at least 1,000 tokens (the last half of a shorter game).",
    ]
    return "\n".join(lines) + "\n"


def _verdict(rows: list[dict[str, Any]]) -> str:
    compressed = [row for row in rows if row["strategy"] not in ("full", "reread")]
    within = [row for row in compressed if row["late_return_lost"] <= MOST_LOST]
    if not within:
        return f"RECOMMENDED: none. No strategy that was run loses at most {MOST_LOST:.0%} of the late return."
    best = min(within, key=lambda row: row["median"])
    speed = f"{best['speedup_over_reread']:.1f} times as fast as reading all of the history again"
    if rows[0]["strategy"] == "full":
        speed += f", {best['speedup_over_full']:.2f} times as fast as caching all of it"
    return (
        f"RECOMMENDED: {best['case']}, the fastest of those that lose at most {MOST_LOST:.0%} of the late return "
        f"(measured: {best['late_return_lost']:.1%}); {speed}."
    )
