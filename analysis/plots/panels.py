"""Parts of pictures: maps with their colour bar, ticks, bars, bands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from kvcompress.analysis.plots.bins import Floats
from kvcompress.analysis.plots.style import BLANK, VERMILION

PROBABILITY = "attention probability\nper key token"
PROBABILITY_OR_BLANK = f"{PROBABILITY} (blank: less)"
SPAN_OF_COLOURS = 1e4  # between the largest probability and the darkest colour


def colour_map(name: str) -> Colormap:
    """A colour map that leaves places without a value blank."""
    return mpl.colormaps[name].with_extremes(bad=BLANK)


def probability_norm(*maps: Floats) -> Normalize:
    """Logarithmic colours for probabilities, the same for several maps: four decades below the largest."""
    positive = np.concatenate([values[np.isfinite(values) & (values > 0)].ravel() for values in maps])
    if not len(positive):
        return Normalize(0, 1)
    most = float(positive.max())
    least = max(float(positive.min()), most / SPAN_OF_COLOURS)
    return LogNorm(least if least < most else most / 10, most)


def probability_mesh(axes: Axes, values: Floats, x: npt.ArrayLike, y: npt.ArrayLike, norm: Normalize) -> QuadMesh:
    """Probabilities over ranges of tokens; what lies below the colours, or is NaN (not observed), stays blank.

    Args:
        axes: where to.
        values: ``[rows, columns]``.
        x: edges of the columns, ``[columns + 1]``.
        y: edges of the rows, ``[rows + 1]``.
        norm: colours, of :func:`probability_norm`.
    """
    mesh = axes.pcolormesh(x, y, above_scale(values, norm), norm=norm, cmap=colour_map("viridis"))
    axes.invert_yaxis()
    axes.grid(visible=False)
    return mesh


def above_scale(values: Floats, norm: Normalize) -> npt.NDArray[np.float64]:
    """Probabilities, those below the colours masked: attention that is as good as none."""
    masked: npt.NDArray[np.float64] = np.ma.masked_where(~(values >= (norm.vmin or 0.0)) | (values == 0), values)
    return masked


def grid_image(axes: Axes, values: Floats, norm: Normalize | None = None, cmap: str = "cividis") -> AxesImage:
    """A map of numbered rows and columns (layers, heads, dimensions); NaN stays blank."""
    image = axes.imshow(values, aspect="auto", interpolation="nearest", cmap=colour_map(cmap), norm=norm)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return image


def write_values(axes: Axes, image: AxesImage, values: Floats, form: str = ".2f") -> None:
    """Writes the numbers of a small map into its cells."""
    for row, column in np.ndindex(*values.shape):
        value = values[row, column]
        if np.isfinite(value):
            dark = sum(image.cmap(image.norm(value))[:3]) < 1.5
            axes.text(
                column,
                row,
                format(value, form).replace("-0.00", "0.00"),
                ha="center",
                va="center",
                fontsize=7.5,
                color="white" if dark else "black",
            )


def colour_bar(drawn: ScalarMappable, axes: Axes | Sequence[Axes], label: str, *, whole: bool = False) -> None:
    """A colour bar that says what is shown, with its unit.

    Args:
        drawn: what has the colours.
        axes: beside which it stands; several share it.
        label: what is shown.
        whole: ticks at whole numbers only.
    """
    first = axes if isinstance(axes, Axes) else axes[0]
    bar = first.figure.colorbar(drawn, ax=axes, label=label, pad=0.015, aspect=28)
    bar.outline.set_visible(False)
    if isinstance(drawn.norm, LogNorm):
        _logarithmic_ticks(bar.ax.yaxis, *drawn.get_clim())
    elif whole:
        whole_ticks(bar.ax.yaxis)


def _logarithmic_ticks(axis: Axis, least: float | None, most: float | None) -> None:
    """Numbers as many as it takes to read the scale: all digits of a short one, 1, 2 and 5, or the powers of ten."""
    ratio = most / least if least and most else 1.0
    if 8 <= ratio < 300:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    plain_numbers(axis, every_tick=ratio < 8)


def plain_numbers(axis: Axis, *, every_tick: bool = False) -> None:
    """Numbers of a logarithmic axis as 0.001 and 1e-05: without mathematical text, which is switched off.

    Args:
        axis: the axis.
        every_tick: write the numbers between powers of ten too, as a short axis needs it.
    """
    number = FuncFormatter(lambda value, _: f"{value:g}")
    axis.set_major_formatter(number)
    axis.set_minor_formatter(number if every_tick else NullFormatter())


def whole_ticks(axis: Axis, most: int = 10) -> None:
    """Ticks at whole numbers only."""
    axis.set_major_locator(MaxNLocator(nbins=most, integer=True, min_n_ticks=1))


def named_ticks(axis: Axis, names: Sequence[Any], most: int = 24) -> None:
    """Names at places 0, 1, 2, ...: all of them, or as many as are legible, evenly spaced."""
    every = max(1, -(-len(names) // most))
    axis.set_ticks(list(range(0, len(names), every)), [str(name) for name in names[::every]])
    axis.set_tick_params(length=2)


def step_limits(axes: Axes, steps: int) -> None:
    """An axis of steps that a single step does not make degenerate."""
    axes.set_xlim(-0.5, max(steps - 0.5, 0.5))
    whole_ticks(axes.xaxis)


def share_axis(axes: Axes, label: str) -> None:
    """A y axis from 0 to 1."""
    axes.set_ylim(0, 1.02)
    axes.set_ylabel(label)


def from_zero(axes: Axes) -> None:
    """A y axis from 0 to a little above what is drawn."""
    most = float(axes.dataLim.y1)
    axes.set_ylim(0, 1.06 * most if np.isfinite(most) and most > 0 else 1)


def spread_norm(values: Floats, least: float | None = None) -> Normalize:
    """Colours over the range of the values, from ``least`` where it is given; never an empty range."""
    known = values[np.isfinite(values)]
    low = float(known.min(initial=np.inf)) if least is None else least
    high = float(known.max(initial=-np.inf))
    return Normalize(low, high) if low < high else Normalize(min(low, high, 0.0), max(high, low, 1.0))


def mark_prompt(axes: Axes, prompt: int, tokens: int) -> None:
    """A line along an axis of tokens where the prompt ends, unless it is at an end of the axis."""
    if not 0 < prompt < tokens:
        return
    axes.axvline(prompt, color=VERMILION, linewidth=1, linestyle="--")
    top = axes.secondary_xaxis("top")  # an axis, so that the title makes room for its label
    top.set_xticks([prompt], ["end of the prompt"])
    top.tick_params(length=0, pad=1, labelsize=8, labelcolor=VERMILION)
    top.spines["top"].set_visible(False)
    for label in top.get_xticklabels():
        label.set_horizontalalignment("right" if prompt > tokens / 2 else "left")
