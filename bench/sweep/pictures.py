"""Pictures of a sweep, as PNG files that are readable at the width of a README."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from kvcompress.bench.sweep.drawing import STYLE
from kvcompress.bench.sweep.layer_curves import tokens_by_layer
from kvcompress.bench.sweep.quality_curves import quality_over_bytes, quality_over_speed
from kvcompress.bench.sweep.summary import Summary
from kvcompress.bench.sweep.task_heatmap import policies_by_task


def draw_all(summary: Summary, folder: Path) -> Iterator[Path]:
    """Draws every picture that the rows allow.

    Args:
        summary: the rows.
        folder: where to; made if it is not there.

    Yields:
        Each file, once it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Callable[[], Figure]] = {
        "quality_over_bytes": partial(quality_over_bytes, summary),
        "quality_over_speed": partial(quality_over_speed, summary),
        **{f"policies_by_task_{mode}": partial(policies_by_task, summary, mode) for mode in summary.modes},
        "tokens_by_layer": partial(tokens_by_layer, summary),
    }
    for name, draw in pictures.items():
        with rc_context(STYLE):
            path = folder / f"{name}.png"
            draw().savefig(path, metadata={"Software": None}, bbox_inches="tight", pad_inches=0.08)
        yield path
