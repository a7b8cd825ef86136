"""Parts that several pictures share."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from kvcompress.analysis.plots.panels import mark_prompt
from kvcompress.analysis.plots.style import new_figure, styled

TOKENS = 100
TITLE = "A title that goes on and on over much of the panel's width, and more"


@styled
def marked(prompt: int) -> Figure:
    figure = new_figure(4)
    axes = figure.subplots()
    axes.set(xlim=(0, TOKENS), title=TITLE)
    mark_prompt(axes, prompt, TOKENS)
    return figure


@pytest.mark.parametrize("prompt", [1, 20, 50, 51, 80, 99])
def test_the_label_of_the_prompt_s_end_is_readable(prompt: int) -> None:
    figure = marked(prompt)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    (top,) = axes.child_axes
    (label,) = top.get_xticklabels()
    assert label.get_text() == "end of the prompt"
    (written,) = axes.findobj(lambda part: isinstance(part, Text) and part.get_text() == TITLE)
    box, title = (text.get_window_extent(canvas.get_renderer()) for text in (label, written))
    assert not box.overlaps(title)
    assert figure.bbox.contains(box.x0, box.y0)
    assert figure.bbox.contains(box.x1, box.y1)
    (line,) = axes.lines
    assert list(line.get_xdata()) == [prompt, prompt]


@pytest.mark.parametrize("prompt", [0, TOKENS, TOKENS + 1])
def test_no_label_where_the_prompt_ends_at_an_end_of_the_axis(prompt: int) -> None:
    (axes,) = marked(prompt).axes
    assert not axes.lines
    assert not axes.child_axes
