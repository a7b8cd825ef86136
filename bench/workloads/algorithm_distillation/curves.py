"""The picture of in-context learning: return per episode."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from kvcompress.analysis.plots.saving import save_png
from kvcompress.analysis.plots.style import COLOURS, GREY, new_figure, styled
from kvcompress.bench.workloads.algorithm_distillation.evaluation import Floats


@styled
def return_curves(curves: Mapping[str, Floats], references: Mapping[str, float]) -> Figure:
    """Return per episode, a line with its spread for each name.

    Args:
        curves: by name, float64 [seeds, episodes]; the band is from the lowest to the highest seed.
        references: horizontal lines by name.
    """
    figure = new_figure(4.4, "Return per episode while the history grows; the weights do not change")
    axes = figure.subplots()
    for (name, values), colour in zip(curves.items(), COLOURS, strict=False):
        episodes = np.arange(1, values.shape[1] + 1)
        axes.plot(episodes, values.mean(0), color=colour, marker="o", label=name)
        axes.fill_between(episodes, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
    for style, (name, level) in zip(("--", ":"), references.items(), strict=False):
        axes.axhline(level, color=GREY, linestyle=style, label=f"{name}: {level:.1f}")
    axes.set(xlabel="episode (20 steps, 60 tokens each)", ylabel="return (rewards per episode)", ylim=(0, 20))
    axes.set_xticks(range(1, max(values.shape[1] for values in curves.values()) + 1))
    axes.legend(loc="center right")
    return figure


def save_curves(curves: Mapping[str, Floats], references: Mapping[str, float], path: Path) -> None:
    """Write the picture; see `return_curves`."""
    save_png(return_curves(curves, references), path)
