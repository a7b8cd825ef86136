"""What the pictures of a sweep have in common.

Every policy has a colour (Okabe and Ito's, which colour-blind people can tell apart), a marker and a dash of its own,
the same in every picture.
"""

from __future__ import annotations

from math import ceil
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kvcompress.bench.sweep.summary import Summary

_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
_DASHES: Final = ("-", "--", ":")
WIDTH: Final = 8.4  # inches, at 150 dots each: 1260 pixels, half as much again as a README shows
STYLE: Final[dict[Any, Any]] = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "figure.dpi": 150,
    "text.parse_math": False,  # names come from files and may hold a $
}
MODE_TITLES: Final = {"query_aware": "question in the prompt", "query_agnostic": "question after the compression"}


def look(summary: Summary, policy: str) -> dict[str, str]:
    """Colour, marker and dash of a policy."""
    place = summary.policies.index(policy)
    return {
        "color": _COLOURS[place % len(_COLOURS)],
        "marker": _MARKERS[place % len(_MARKERS)],
        "linestyle": _DASHES[place // len(_COLOURS) % len(_DASHES)],
    }


def legend(figure: Figure, axes: Axes) -> None:
    """Puts what a panel shows under the whole picture."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        longest = max(map(len, labels))
        most = max(1, min(len(labels), int(110 / (longest + 6))))
        rows = ceil(len(labels) / most)
        columns = ceil(len(labels) / rows)  # rows of equal length
        figure.set_figheight(figure.get_figheight() + 0.2 * rows)  # the panels keep their height
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)
