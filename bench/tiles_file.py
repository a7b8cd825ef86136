"""The file of measured tiles, ``kernels/tiles.json``: what the tuner writes and the launchers read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kvcompress.analysis.files import replace_text

if TYPE_CHECKING:
    from kvcompress.bench.tune_tiles import Outcome

SCHEMA: Final = "kvcompress.tiles/1"


def content(outcomes: Sequence[Outcome], made_in: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """What is written: the new tiles, and the earlier ones of other kernels, layers and architectures.

    Args:
        outcomes: of this run.
        made_in: its environment.
        earlier: what the file held, or nothing.
    """
    tuned = {outcome.key: asdict(outcome.chosen) for outcome in outcomes}
    medians = {
        outcome.key: {"ms": outcome.median, "rule_ms": outcome.rule_median, "device": made_in["device"]}
        for outcome in outcomes
    }
    return {
        "schema": SCHEMA,
        "device": made_in["device"],
        "driver": made_in["driver"],
        "triton": made_in["triton"],
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "tiles": dict(sorted({**earlier.get("tiles", {}), **tuned}.items())),
        "medians": dict(sorted({**earlier.get("medians", {}), **medians}.items())),
    }


def write_tiles(path: Path, new: Mapping[str, Any]) -> None:
    """Puts the tiles in the file's place in one step."""
    replace_text(path, json.dumps(new, indent=2, allow_nan=False) + "\n")


def read_tiles(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where there is none."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
