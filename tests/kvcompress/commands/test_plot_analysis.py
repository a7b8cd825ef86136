"""``kvcompress plot``: which pictures it writes, what it tells, and what it refuses."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from kvcompress.commands.failures import OneLineErrors
from kvcompress.commands.plot_analysis import plot
from tests.analysis.samples import write_sample

PNG = b"\x89PNG\r\n\x1a\n"

app = typer.Typer(cls=OneLineErrors, pretty_exceptions_enable=False)
app.command()(plot)
app.command("other")(lambda: None)  # with a single command typer would take away its name


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, ["plot", *map(str, words)], env={"COLUMNS": "100"})


def printed_json(*words: object) -> Any:
    """The one object that the command prints with --json."""
    result = invoke(*words, "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return json.loads(result.stdout, parse_constant=pytest.fail)


def refused(*words: object) -> str:
    """The one line on stderr of a command that is refused."""
    result = invoke(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("kvcompress: error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """A capture of a compressed sample and one that is not."""
    folder = tmp_path / "capture"
    for index in range(2):
        write_sample(folder, index, layers=2, prompt=20, generated=2, compressed=index == 0)
    return folder


class TestPictures:
    def test_by_name(self, capture: Path) -> None:
        result = invoke(
            capture, "--what", "attention_heatmap,eviction_timeline", "--layer", 1, "--step", 2, "--head", 3
        )
        assert result.exit_code == 0, result.output
        names = ("attention_heatmap_layer_1_sample_0.png", "eviction_timeline_sample_0.png")
        assert result.stdout.splitlines() == [f"written: {capture / 'plots' / name}" for name in names]
        assert all((capture / "plots" / name).read_bytes().startswith(PNG) for name in names)

    def test_all_samples_into_another_folder(self, capture: Path, tmp_path: Path) -> None:
        before = sorted(os.listdir(capture))
        told = printed_json(
            capture,
            "--sample",
            "all",
            "--what",
            "layer_statistics,compression_ratios",
            "--output-dir",
            tmp_path / "out",
        )
        assert told["schema"] == "kvcompress.plot/1"
        assert [sample["sample"] for sample in told["samples"]] == [0, 1]
        first, second = ([Path(path) for path in sample["written"]] for sample in told["samples"])
        assert {path.relative_to(tmp_path / "out").as_posix() for path in first} == {
            "layers/layer_statistics.png",
            "reports/plots/compression_ratios_sample_0.png",
        }
        assert second == [tmp_path / "out" / "sample_1" / "layers" / "layer_statistics.png"]
        assert list(told["samples"][1]["left_out"]) == ["compression_ratios"]
        assert all(path.read_bytes().startswith(PNG) for path in first + second)
        assert sorted(os.listdir(capture)) == before

    @pytest.mark.slow
    def test_everything_and_what_is_left_out(self, capture: Path) -> None:
        result = invoke(capture)
        assert result.exit_code == 0, result.output
        written = [Path(line.removeprefix("written: ")) for line in result.stdout.splitlines()]
        assert len(written) >= 25
        assert all(path.is_file() for path in written)
        assert "left out of sample 0: tucker_components: it needs" in result.stderr


class TestRefusals:
    def test_nothing_is_overwritten_unless_forced(self, capture: Path) -> None:
        words = (capture, "--what", "layer_statistics,head_sparsity")
        path = capture / "layers" / "layer_statistics.png"
        path.parent.mkdir()
        path.write_bytes(b"mine")
        assert f"{path} would be overwritten. Give --force" in refused(*words)
        assert path.read_bytes() == b"mine"
        assert not (capture / "heads").exists()
        assert invoke(*words, "--force").exit_code == 0
        assert path.read_bytes().startswith(PNG)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--what", "nonsense"), "--what must be of attention_entropy_evolution, "),
            (("--what", ","), "--what must be of"),
            (("--layer", "2"), "layer must be in 0..1; got 2"),
            (("--layer", "-1"), "layer must be in 0..1; got -1"),
            (("--step", "3"), "step must be in 0..2; got 3"),
            (("--head", "4"), "head must be in 0..3; got 4"),
            (("--sample", "2"), "has no sample 2; it has 0, 1"),
            (("--sample", "x"), "--sample must be a number from 0 on, or all; got 'x'"),
        ],
    )
    def test_what_there_is_not(self, capture: Path, words: tuple[str, ...], message: str) -> None:
        before = sorted(os.listdir(capture))
        assert message in refused(capture, *words)
        assert sorted(os.listdir(capture)) == before

    def test_pictures_that_the_sample_has_no_data_for(self, capture: Path) -> None:
        line = refused(capture, "--sample", 1, "--what", "eviction_timeline,tucker_components")
        assert "nothing could be drawn" in line
        assert "was not compressed" in line
        assert "kvcompress tucker" in line

    def test_folder_that_is_none(self, tmp_path: Path) -> None:
        assert "a capture must be a folder" in refused(tmp_path / "none")

    def test_damaged_sample(self, capture: Path) -> None:
        data = capture / "attention_data_sample_0.safetensors"
        data.write_bytes(data.read_bytes()[:-1])
        assert "truncated" in refused(capture)

    def test_damaged_results(self, capture: Path) -> None:
        (capture / "tucker.json").write_text("{", encoding="utf-8")
        assert "tucker.json must be JSON" in refused(capture, "--what", "tucker_components")
        (capture / "tucker.json").write_text('{"schema": "kvcompress.tucker/1"}', encoding="utf-8")
        assert "tucker.json is damaged (KeyError: 'layers')" in refused(capture, "--what", "tucker_components")
        (capture / "similarity.json").write_text('{"schema": "kvcompress.similarity/1"}', encoding="utf-8")
        assert "the file is damaged" in refused(capture, "--what", "head_similarity")

    def test_output_folder_that_is_a_file(self, capture: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("", encoding="utf-8")
        line = refused(capture, "--what", "layer_statistics", "--output-dir", tmp_path / "file")
        assert "--output-dir must be a folder that can be written" in line
