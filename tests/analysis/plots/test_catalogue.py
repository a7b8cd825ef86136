"""Every picture of the catalogue: it says what its axes and colours are, and leaves the process as it was."""

import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kvcompress.analysis.plots.catalogue import VIEWS, Place
from kvcompress.analysis.plots.problems import NothingToDrawError
from kvcompress.analysis.plots.saving import save_png
from kvcompress.analysis.summary.reader import Sample

OF_COMPRESSION = ("compression_ratios", "preference_scores", "eviction_timeline")
FIRST = Place(layer=0, step=0, head=None)


@pytest.fixture
def settings_of_the_user() -> Iterator[None]:
    """Settings that would spoil a picture, were they taken over."""
    with mpl.rc_context({"text.usetex": True, "font.size": 40, "axes.facecolor": "red"}):
        yield


def labelled(figure: Figure, axes: Axes) -> bool:
    """Whether a panel has labels of its own or shares those of the figure or of its neighbours."""
    shared = figure.get_supxlabel() or figure.get_supylabel()
    neighbours = [other for other in figure.axes if other.get_xlabel() or other.get_ylabel()]
    alike = axes.get_shared_x_axes().get_siblings(axes) + axes.get_shared_y_axes().get_siblings(axes)
    return bool(axes.get_xlabel() or axes.get_ylabel() or shared or set(alike) & set(neighbours))


@pytest.mark.usefixtures("settings_of_the_user")
@pytest.mark.parametrize("name", VIEWS)
def test_picture_names_its_axes_and_keeps_to_itself(compressed: Sample, name: str, tmp_path: Path) -> None:
    before, had_pyplot = dict(mpl.rcParams), "matplotlib.pyplot" in sys.modules
    figure = VIEWS[name].draw(compressed, FIRST)
    assert dict(mpl.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) is had_pyplot
    shown = [axes for axes in figure.axes if axes.get_visible() and axes.has_data()]
    assert shown
    assert all(labelled(figure, axes) for axes in shown)
    assert figure.get_suptitle() or any(axes.get_title(loc="left") for axes in shown)
    save_png(figure, tmp_path / "picture.png")  # warnings are errors
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", VIEWS)
def test_smallest_sample_is_drawn_or_the_reason_told(smallest: Sample, name: str) -> None:
    if name in OF_COMPRESSION:
        with pytest.raises(NothingToDrawError, match="was not compressed"):
            VIEWS[name].draw(smallest, FIRST)
    else:
        VIEWS[name].draw(smallest, FIRST).savefig(BytesIO(), dpi=40)  # warnings are errors
