"""Pictures of the user's own, drawn with the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from matplotlib.figure import Figure

from kvcompress.analysis.plots.catalogue import VIEWS
from kvcompress.analysis.plots.interactive_views import INTERACTIVE_VIEWS
from kvcompress.analysis.plots.result_views import RESULT_VIEWS
from kvcompress.analysis.summary.reader import Sample
from kvcompress.analysis.user_functions import UserFunctions

Plot = Callable[[Sample], Figure]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_PLOTS: UserFunctions[Plot] = UserFunctions("plot", "take a Sample and return a Figure")


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
    if not _NAME.fullmatch(name):
        raise ValueError(f"name must be of letters, digits, _ and -, starting with a letter or digit; got {name!r}")
    if name in VIEWS or name in RESULT_VIEWS or name in INTERACTIVE_VIEWS:
        raise ValueError(f"name must not be that of a built-in picture; got {name!r}. Choose another.")
    _PLOTS.add(name, function, replace=replace)


def unregister_plot(name: str) -> None:
    """Takes a picture of the user's own away again.

    Raises:
        ValueError: none of that name is registered.
    """
    _PLOTS.remove(name)


def registered_plots() -> Mapping[str, Plot]:
    """The registered plots, by name; a view that cannot be written."""
    return _PLOTS.all()
