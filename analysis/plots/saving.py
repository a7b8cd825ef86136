"""Figures as files, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from kvcompress.analysis.files import replace_text, replacing
from kvcompress.analysis.plots.style import DPI, common_style

_HTML_SETTINGS = {"displaylogo": False, "responsive": True}


def refuse_existing(paths: Iterable[Path]) -> None:
    """Checks that files can be written without overwriting one.

    Raises:
        FileExistsError: one is there already.
    """
    there = [path for path in paths if path.exists()]
    if there:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise FileExistsError(f"{there[0]}{more} must not be there already; give force, or another folder")


def save_png(figure: Figure, path: Path) -> Path:
    """Writes a figure as a PNG file, 1260 pixels wide where it is of the common width.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as partial, common_style():
        figure.savefig(partial, format="png", dpi=DPI, metadata={"Software": None})
    return path


def save_html(figure: Any, path: Path) -> Path:
    """Writes a plotly figure as one HTML file that needs no other file and no network.

    Args:
        figure: a ``plotly.graph_objects.Figure``.
        path: where to.

    Raises:
        OSError: it cannot be written.
    """
    replace_text(path, figure.to_html(include_plotlyjs=True, config=_HTML_SETTINGS, div_id="attention"))
    return path
