"""Pictures and pages of a sweep: all is there, the same in both forms, and nothing of a file can run or be fetched."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import pytest

from kvcompress.bench.sweep.layer_curves import tokens_by_layer
from kvcompress.bench.sweep.pages import write_report
from kvcompress.bench.sweep.pictures import draw_all
from kvcompress.bench.sweep.quality_curves import quality_over_bytes, quality_over_speed
from kvcompress.bench.sweep.row import Row
from kvcompress.bench.sweep.summary import summarise
from kvcompress.bench.sweep.task_heatmap import policies_by_task
from tests.bench.sweep.rows import make_row, sweep_rows

NASTY = "<script>alert('x')</script>|*a*$\\frac{$"


class Page(HTMLParser):
    """Collects tags, attributes, and the cells of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_cell = tag in ("td", "th")

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.cells.append(data)


def pages(rows: list[Row], folder: Path) -> tuple[str, str]:
    written = list(write_report(summarise(rows), folder))
    assert all(path.is_file() for path in written)
    return (folder / "report.md").read_text(), (folder / "report.html").read_text()


def test_every_picture_shows_something(tmp_path: Path) -> None:
    paths = list(draw_all(summarise(sweep_rows()), tmp_path / "deep"))
    assert len(paths) == 5
    for path in paths:
        pixels = matplotlib.image.imread(path)[..., :3]
        assert pixels.shape[1] > 700
        assert (pixels.min(-1) < 0.95).mean() > 0.01


def test_curves_show_the_means_and_their_intervals() -> None:
    summary = summarise(sweep_rows())
    axes = quality_over_bytes(summary).axes[0]
    drawn = {container.get_label(): container for container in axes.containers}
    assert set(drawn) == {"cake", "random"}
    line = drawn["cake"].lines[0]
    assert line.get_xdata()[0] == pytest.approx(100 * 1000 / 8000, rel=0.03)  # moved aside a little
    assert line.get_ydata()[0] == pytest.approx(100 * 11 / 12)
    low, high = drawn["cake"].lines[2][0].get_segments()[0][:, 1]
    score = summary.of_mode("query_aware")[1].score
    assert (low, high) == (pytest.approx(100 * score.low), pytest.approx(100 * score.high))
    speeds = {container.get_label() for container in quality_over_speed(summary).axes[0].containers}
    assert speeds == {"cake", "random", "full"}


def test_map_shows_the_score_of_every_policy_on_every_task() -> None:
    figure = policies_by_task(summarise(sweep_rows()[:-1]), "query_agnostic")
    assert [text.get_text() for text in figure.axes[0].texts] == ["100", "100", "92", "92", "8", "-"]


def test_layers_of_policies_that_hide_each_other_are_one_line() -> None:
    rows = [*sweep_rows(), make_row((1.0,) * 12, policy="snapkv", layer_tokens=(48.0, 48.0))]
    figure = tokens_by_layer(summarise(rows))
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert lines == {"cake": [60.0, 36.0], "the same in each layer": [48.0, 48.0]}
    assert figure.get_suptitle() == "The same in each layer: random, snapkv."


@pytest.mark.parametrize("kept", [slice(0, 1), slice(1, 2), slice(0, 2), slice(1, 3), slice(0, 8)])
def test_part_of_a_sweep_can_be_told(tmp_path: Path, kept: slice) -> None:
    pages(sweep_rows()[kept], tmp_path)


def test_both_pages_hold_the_same_figures(tmp_path: Path) -> None:
    text, html = pages(sweep_rows(), tmp_path)
    cells = [
        cell.strip() for line in text.splitlines() if line.startswith("| ") for cell in line.strip("| ").split("|")
    ]
    plain = [re.sub(r"\*\*|\\| ≈$", "", cell).strip() for cell in cells if not set(cell.strip()) <= set("-:")]
    assert plain == [cell for cell in Page(html).cells if not set(cell) <= set("-")]
    assert "91.7 [65, 99]" in plain
    assert "**91.7 [65, 99]**" in text
    assert '<td class="best">91.7 [65, 99]</td>' in html


def test_unfinished_means_are_left_out(tmp_path: Path) -> None:
    text, _ = pages(sweep_rows()[:-1], tmp_path)
    aware, _, agnostic, _ = [line.split("|") for line in text.splitlines() if line.startswith("| 48 | random")]
    assert [cell.strip() for cell in agnostic[4:6]] == ["-", "-"]
    assert "-" not in [cell.strip() for cell in aware]
    assert "random (not finished)" in text


def test_html_fetches_nothing_and_runs_nothing(tmp_path: Path) -> None:
    rows = [replace(row, cpu=NASTY, cell=replace(row.cell, model=NASTY)) for row in sweep_rows()]
    rows += [make_row((1.0,) * 12, policy=NASTY, task=NASTY, mode=row.cell.mode, model=NASTY) for row in rows[::6]]
    text, html = pages(rows, tmp_path)
    page = Page(html)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "a"})
    sources = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 5
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in html
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert NASTY in page.cells  # shown as it is
    assert "<script>" not in text
    lines = [line for line in text.splitlines() if line.startswith("| 48")]
    assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {
        2 + 7,
        2 + 9,
    }  # columns of the scores and of the costs
