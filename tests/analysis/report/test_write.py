"""Writing the page: whole or not at all, never over a file unless told to."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from kvcompress.analysis.report import write
from kvcompress.analysis.report.write import write_report
from kvcompress.analysis.summary.errors import SummaryError
from kvcompress.commands.failures import OneLineErrors
from kvcompress.commands.report_page import report
from tests.analysis.report.unpacking import blocks, sample_block
from tests.analysis.samples import write_sample

PICTURE = b"\x89PNG\r\n\x1a\n made up"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a capture of two samples."""
    write_sample(tmp_path / "run", prompt=12, generated=2)
    write_sample(tmp_path / "run", 1, prompt=12, generated=2, compressed=False)
    return tmp_path / "run"


def run(*arguments: str) -> Any:
    """Run the command as the command line does."""
    app = typer.Typer(cls=OneLineErrors)
    app.command()(report)
    app.callback()(lambda: None)
    return CliRunner().invoke(app, ["report", *arguments])


def test_all_samples_are_on_the_page(folder: Path) -> None:
    path = write_report(folder)
    assert path == folder / "report.html"
    assert {"sample-0", "sample-1"} <= blocks(path.read_text()).keys()
    assert sample_block(path, 1)["policy"] is None


def test_chosen_samples_alone_are_on_the_page(folder: Path) -> None:
    found = blocks(write_report(folder, samples=[1]).read_text())
    assert "sample-1" in found
    assert "sample-0" not in found


def test_file_is_replaced_only_with_force(folder: Path) -> None:
    path = folder / "report.html"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="force"):
        write_report(folder)
    assert path.read_text() == "mine"
    write_report(folder, force=True)
    assert "sample-0" in blocks(path.read_text())


def test_failure_leaves_the_old_file_and_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "report.html"
    path.write_text("old")
    before = sorted(folder.iterdir())

    def fail(*_: object, **__: object) -> str:
        raise RuntimeError("stopped")

    monkeypatch.setattr(write, "render", fail)
    with pytest.raises(RuntimeError, match="stopped"):
        write_report(folder, force=True)
    monkeypatch.setattr(write, "render", lambda *_, **__: "\ud800")  # cannot be encoded: fails while writing
    with pytest.raises(UnicodeEncodeError):
        write_report(folder, force=True)
    assert path.read_text() == "old"
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("samples", [[7], [0, 7]])
def test_sample_that_is_not_there_is_named(folder: Path, samples: list[int]) -> None:
    with pytest.raises(SummaryError, match="no sample 7"):
        write_report(folder, samples=samples)


def test_folder_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SummaryError, match="no complete sample"):
        write_report(tmp_path)


def test_documents_and_pictures_of_the_folder_are_on_the_page(folder: Path) -> None:
    (folder / "reports").mkdir()
    (folder / "plots").mkdir()
    (folder / "compression_recommendations.json").write_text('{"strategy": "<script>", "ratio": NaN}')
    (folder / "reports" / "analysis_report_sample_0.json").write_text('{"entropy": 1.5}')
    (folder / "reports" / "analysis_report_sample_1.json").write_text("{broken")
    (folder / "plots" / "a b.png").write_bytes(PICTURE)
    documents = blocks(write_report(folder).read_text())["documents"]
    assert documents["recommendations"] == {"strategy": "<script>", "ratio": "nan"}
    assert documents["analyses"] == {"0": {"entropy": 1.5}}
    assert documents["pictures"] == [{"name": "plots/a b.png", "href": "plots/a%20b.png", "data": None}]
    assert "analysis_report_sample_1.json" in documents["notes"][0]


def test_pictures_are_embedded_when_asked_for(folder: Path, tmp_path: Path) -> None:
    (folder / "one.png").write_bytes(PICTURE)
    (folder / "view.html").write_text("<p>")
    out = tmp_path / "other" / "page.html"
    pictures = blocks(write_report(folder, out, embed_plots=True).read_text())["documents"]["pictures"]
    assert [(one["name"], one["href"], one["data"] is None) for one in pictures] == [
        ("one.png", "../run/one.png", False),
        ("view.html", "../run/view.html", True),
    ]


def test_links_out_of_the_folder_are_no_pictures(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(PICTURE)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    assert blocks(write_report(folder, embed_plots=True).read_text())["documents"]["pictures"] == []


def test_command_tells_where_the_page_is(folder: Path) -> None:
    done = run(str(folder), "--sample", "1", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    path = Path(told["written"])
    assert told == {
        "schema": "kvcompress.report/1",
        "written": str(folder / "report.html"),
        "bytes": path.stat().st_size,
        "samples": [1],
    }


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--sample", "x"], "--sample must be a number"),
        (["--sample", "9"], "no sample 9"),
        (["--out", "."], "is a folder"),
        (["--out", "report.html/page.html"], "cannot be written"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_two(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], reason: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "report.html").write_text("mine")
    done = run(".", *arguments)
    assert done.exit_code == 2, done.output
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


def test_command_keeps_a_file_without_force(folder: Path) -> None:
    assert run(str(folder)).exit_code == 0
    again = run(str(folder))
    assert again.exit_code == 2
    assert "--force" in again.stderr
    assert run(str(folder), "--force").exit_code == 0
