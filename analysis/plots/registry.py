"""Pictures of the user's own, drawn with the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from matplotlib.figure import Figure

from kvcompress.analysis.plots.catalogue import VIEWS
from kvcompress.analysis.plots.interactive_views import INTERACTIVE_VIEWS
from kvcompress.analysis.plots.result_views import RESULT_VIEWS
from kvcompress.analysis.summary.reader import Sample

Plot = Callable[[Sample], Figure]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_PLOTS: dict[str, Plot] = {}


class UserPlotWarning(RuntimeWarning):
    """A registered plot failed; the list of files tells its name and its error among what was left out."""


def register_plot(name: str, function: Plot, *, replace: bool = False) -> None:
    """Adds a picture: ``plots/<name>_sample_<i>.png`` of the comprehensive report.

    Where a sample lacks what the picture shows, the function raises
    :class:`~kvcompress.analysis.plots.problems.NothingToDrawError`.

    Args:
        name: letters, digits, ``_`` and ``-``; none of the built-in ones.
        function: takes a sample and returns a ``matplotlib.figure.Figure``, best one of its own (no pyplot).
        replace: whether it may take the place of one of the same name.

    Raises:
        TypeError: the function cannot be called.
        ValueError: the name cannot be that of a file, or is taken.
    """
    if not callable(function):
        raise TypeError(f"function must take a Sample and return a Figure; got {type(function).__name__}")
    if not _NAME.fullmatch(name):
        raise ValueError(f"name must be of letters, digits, _ and -, starting with a letter or digit; got {name!r}")
    if name in VIEWS or name in RESULT_VIEWS or name in INTERACTIVE_VIEWS:
        raise ValueError(f"name must not be that of a built-in picture; got {name!r}. Choose another.")
    if name in _PLOTS and not replace:
        raise ValueError(f"name must be new; a plot {name!r} is registered. Give another name, or replace=True.")
    _PLOTS[name] = function


def unregister_plot(name: str) -> None:
    """Takes a picture of the user's own away again.

    Raises:
        ValueError: none of that name is registered.
    """
    if name not in _PLOTS:
        raise ValueError(f"name must be that of a registered plot, one of {sorted(_PLOTS)}; got {name!r}")
    del _PLOTS[name]


def registered_plots() -> Mapping[str, Plot]:
    """The registered plots, by name; a view that cannot be written."""
    return MappingProxyType(_PLOTS)
