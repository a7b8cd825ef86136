"""``kvcompress analyze``, ``generation`` and ``samples``: what they print and write, and what they refuse."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from kvcompress.analysis.analyzer import AttentionAnalyzer
from kvcompress.commands.analyze import analyze, generation, samples
from kvcompress.commands.failures import OneLineErrors
from tests.analysis.samples import write_sample

app = typer.Typer(cls=OneLineErrors, pretty_exceptions_enable=False)
for command in (analyze, generation, samples):
    app.command()(command)


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "100"})


def printed_json(*words: object) -> Any:
    """The one object that a command prints with --json."""
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


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture of two compressed samples and one that is not."""
    folder = tmp_path_factory.mktemp("recorded")
    for index in range(3):
        write_sample(folder, index, seed=index, compressed=index < 2, tokens=[f"[red]ü{i}[/]" for i in range(56)])
    return folder


@pytest.fixture
def capture(recorded: Path, tmp_path: Path) -> Path:
    """A copy of it, to be written into and damaged."""
    return Path(shutil.copytree(recorded, tmp_path / "capture"))


class TestAnalyze:
    def test_report_is_written_and_summed_up(self, capture: Path) -> None:
        result = invoke("analyze", capture)
        assert result.exit_code == 0, result.output
        path = capture / "reports" / "analysis_report_sample_0.json"
        report = json.loads(path.read_text())
        assert result.stdout.endswith(f"written: {path}\n")
        assert "48 tokens of prompt, 8 generated" in result.stdout
        assert f"{report['compression']['ratio']:.1%} of the tokens removed" in result.stdout
        top = report["most_attended_tokens"]["tokens"][0]
        assert repr(top["token"]) in result.stdout  # markup in a token is text
        for layer in report["attention"]["layers"]:
            assert f"{layer['entropy']:.3g}" in result.stdout

    def test_json_is_what_is_written(self, capture: Path) -> None:
        found = printed_json("analyze", capture, "--sample", "all")
        paths = [capture / "reports" / f"analysis_report_sample_{index}.json" for index in range(3)]
        assert found["written"] == [str(path) for path in paths]
        assert found["reports"] == [json.loads(path.read_text()) for path in paths]
        assert found["reports"][1] == AttentionAnalyzer(capture).generate_analysis_report(1)

    @pytest.mark.parametrize(
        ("focus", "words"),
        [
            ("layers", "keys and values by layer"),
            ("heads", "heads, the most focused first"),
            ("tokens", "prompt tokens by influence"),
            ("embeddings", "dimensions of the keys"),
        ],
    )
    @pytest.mark.parametrize("sample", [0, 2], ids=["compressed", "full"])
    def test_focus_tells_more(self, capture: Path, focus: str, words: str, sample: int) -> None:
        plain = invoke("analyze", capture, "--sample", sample)
        focused = invoke("analyze", capture, "--sample", sample, "--focus", focus, "--force")
        assert focused.exit_code == 0, focused.output
        assert words not in plain.stdout
        assert words in focused.stdout

    def test_prompt_alone(self, tmp_path: Path) -> None:
        write_sample(tmp_path, generated=0)
        result = invoke("analyze", tmp_path, "--focus", "tokens")
        assert result.exit_code == 0, result.output
        assert "most attended tokens, by queries of event 0" in result.stdout

    def test_nothing_is_overwritten_without_force(self, capture: Path) -> None:
        assert invoke("analyze", capture, "--sample", 1).exit_code == 0
        path = capture / "reports" / "analysis_report_sample_1.json"
        path.write_text("mine")
        message = refused("analyze", capture, "--sample", "all")
        assert str(path) in message
        assert "--force" in message
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]  # nor has anything else been written
        assert path.read_text() == "mine"
        assert invoke("analyze", capture, "--sample", 1, "--force").exit_code == 0
        assert json.loads(path.read_text())["sample"] == 1

    def test_output_dir(self, capture: Path, tmp_path: Path) -> None:
        assert invoke("analyze", capture, "--output-dir", tmp_path / "out").exit_code == 0
        assert (tmp_path / "out" / "reports" / "analysis_report_sample_0.json").is_file()
        assert not (capture / "reports").exists()

    def test_output_dir_that_cannot_be_written(self, capture: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        assert "cannot be written" in refused("analyze", capture, "--output-dir", tmp_path / "file")

    @pytest.mark.parametrize("choice", ["-1", "x", "1.0", "", "²", "all,1"])
    def test_sample_that_is_no_number(self, capture: Path, choice: str) -> None:
        assert "--sample must be a number from 0 on, or all" in refused("analyze", capture, f"--sample={choice}")

    def test_sample_that_is_not_there(self, capture: Path) -> None:
        assert "has no sample 7; it has 0, 1, 2" in refused("analyze", capture, "--sample", 7)

    def test_unknown_focus(self, capture: Path) -> None:
        assert "--focus must be one of layers, heads, tokens, embeddings" in refused("analyze", capture, "--focus", "x")

    def test_damaged_sample(self, capture: Path) -> None:
        path = capture / "attention_data_sample_0.safetensors"
        path.write_bytes(path.read_bytes()[:-10])
        assert "truncated" in refused("analyze", capture)
        assert not (capture / "reports").exists()

    def test_interrupted_capture_is_analysed_as_far_as_it_goes(self, capture: Path) -> None:
        (capture / ".sample_3.partial").mkdir()
        assert [report["sample"] for report in printed_json("analyze", capture, "--sample", "all")["reports"]] == [
            0,
            1,
            2,
        ]


@pytest.mark.parametrize("name", ["analyze", "generation", "samples"])
def test_folder_without_samples(name: str, tmp_path: Path) -> None:
    assert "holds no complete sample" in refused(name, tmp_path)
    assert "must be a folder" in refused(name, tmp_path / "none")


class TestGeneration:
    def test_stages_are_those_of_the_report(self, capture: Path) -> None:
        found = printed_json("generation", capture, "--sample", "all")["samples"]
        for index in range(3):
            report = AttentionAnalyzer(capture).generate_analysis_report(index)
            assert found[index] == {"sample": index, **report["generation_stages"]}

    def test_table_has_a_column_for_each_stage(self, capture: Path) -> None:
        result = invoke("generation", capture)
        assert result.exit_code == 0, result.output
        for words in ("prompt", "early", "middle", "late", "entropy", "held"):
            assert words in result.stdout


class TestSamples:
    def test_rows(self, capture: Path) -> None:
        rows = printed_json("samples", capture)["samples"]
        assert [row["sample"] for row in rows] == [0, 1, 2]
        for row in rows:
            assert (row["prompt_tokens"], row["generated_tokens"], row["events"]) == (48, 8, 9)
            data = capture / f"attention_data_sample_{row['sample']}.safetensors"
            assert row["file_bytes"] == data.stat().st_size
        assert [row["policy"] and row["policy"]["name"] for row in rows] == ["made_up", "made_up", None]

    def test_table(self, capture: Path) -> None:
        result = invoke("samples", capture)
        assert result.exit_code == 0, result.output
        lines = [line.split() for line in result.stdout.splitlines()]
        assert ["2", "made", "up", "48", "8", "9", "none"] in [line[:7] for line in lines]
