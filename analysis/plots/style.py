"""What all pictures of a capture have in common: colours, sizes, fonts.

The colours of lines are Okabe and Ito's, those of maps viridis and cividis: colour-blind people can tell them apart.
Pictures are 1260 pixels wide. No global state is touched: every view draws within its own settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final, ParamSpec

import matplotlib as mpl
from matplotlib import rc_context
from matplotlib.figure import Figure

_Arguments = ParamSpec("_Arguments")

BLUE: Final = "#0072B2"
VERMILION: Final = "#D55E00"
GREEN: Final = "#009E73"
PURPLE: Final = "#CC79A7"
ORANGE: Final = "#E69F00"
SKY: Final = "#56B4E9"
GREY: Final = "#666666"
COLOURS: Final = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
BLANK: Final = "#ececec"  # of a map where there is no value
DPI: Final = 140
WIDTH: Final = 9.0  # inches: 1260 pixels
STYLE: Final[dict[Any, Any]] = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.dpi": DPI,
    "figure.titlesize": 11.5,
    "image.cmap": "viridis",
    "text.parse_math": False,  # tokens and names come from prompts and files and may hold a $
}


@contextmanager
def common_style() -> Iterator[None]:
    """Draws in the common style, whatever the settings of the process are, and leaves those as they were."""
    with rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def styled(draw: Callable[_Arguments, Figure]) -> Callable[_Arguments, Figure]:
    """Makes a view draw in the common style; see :func:`common_style`.

    Args:
        draw: a view; returns the figure it made.
    """

    @wraps(draw)
    def drawn(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Figure:
        with common_style():
            return draw(*args, **kwargs)

    return drawn


def new_figure(height: float, title: str | None = None) -> Figure:
    """An empty figure of the common width.

    Args:
        height: in inches.
        title: over everything, or None.
    """
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    return figure


def shades(count: int) -> list[Any]:
    """``count`` colours in order, from dark to light, none too light to see on white."""
    colour_map = mpl.colormaps["viridis"]
    return [colour_map(0.9 * place / max(count - 1, 1)) for place in range(count)]


def line_colours(count: int) -> list[Any]:
    """Colours of ``count`` lines: distinct ones for a few, shades in order for many."""
    return list(COLOURS[:count]) if count <= len(COLOURS) else shades(count)
