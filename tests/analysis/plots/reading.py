"""Reads back what a figure shows."""

from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

Values = npt.NDArray[Any]


def mesh_of(axes: Axes) -> QuadMesh:
    """The one map of ranges in a panel."""
    (mesh,) = [drawn for drawn in axes.collections if isinstance(drawn, QuadMesh)]
    return mesh


def mesh_values(axes: Axes) -> Values:
    """Its values, blank ones as NaN."""
    return np.ma.filled(np.ma.asarray(mesh_of(axes).get_array()), np.nan)


def image_values(axes: Axes) -> Values:
    """The values of the one image in a panel, blank ones as NaN."""
    (image,) = axes.images
    return np.ma.filled(np.ma.asarray(image.get_array()).astype(np.float64), np.nan)


def line_values(axes: Axes, label: str) -> Values:
    """The y values of the line of a name."""
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return np.asarray(line.get_ydata(), dtype=np.float64)


def bar_heights(axes: Axes) -> Values:
    """Heights of a panel's bars, from left to right."""
    return np.array([bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)])


def panel(figure: Figure, title: str) -> Axes:
    """The panel whose title begins so."""
    (found,) = [axes for axes in figure.axes if axes.get_title(loc="left").startswith(title)]
    return found


def texts_of(figure: Figure) -> str:
    """All titles, labels and legends of a figure, a line each."""
    lines = [figure.get_suptitle()]
    for axes in figure.axes:
        lines += [axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()]
        legend = axes.get_legend()
        lines += [text.get_text() for text in legend.get_texts()] if legend else []
    lines += [figure.get_supxlabel(), figure.get_supylabel()]
    return "\n".join(line.replace("\n", " ") for line in lines if line)
