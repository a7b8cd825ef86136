"""The command line as a whole: help, version, policies, and how errors become lines."""

import subprocess
import sys

import pytest
from rich.console import Console
from typer.testing import CliRunner

from kvcompress.cli import app
from kvcompress.commands.failures import CommandError, report
from kvcompress.commands.summary import MOST_BARS, kept_chart, size
from kvcompress.engine.report import CacheReport, LayerReport
from kvcompress.errors import CacheStateError
from kvcompress.policies.registry import POLICIES
from kvcompress.presets import PRESETS
from tests.source_tree import ROOT

COMMANDS = (
    *("generate", "demo", "policies"),
    *("run", "capture", "samples", "analyze", "generation", "plot", "report", "export"),
    *("recommend", "tucker", "similarity", "prune"),
)


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_lists_the_commands(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    first_words = [line.strip("│ ").split()[:1] for line in result.stdout.splitlines()]
    for name in (*COMMANDS, "bench"):
        assert [name] in first_words


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("kvcompress ")
    assert result.stdout.count("\n") == 1


def test_help_imports_nothing_heavy() -> None:
    """With an empty package in the place of kvcompress/__init__.py, whose imports are not the command line's."""
    code = (
        "import sys, types\n"
        "package = types.ModuleType('kvcompress')\n"
        f"package.__path__ = [{str(ROOT / 'kvcompress')!r}]\n"
        "sys.modules['kvcompress'] = package\n"
        "from kvcompress.cli import app\n"
        f"for command in {COMMANDS!r}:\n"
        "    try:\n"
        "        app([command, '--help'])\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 0, end.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'matplotlib', 'plotly', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for option in ("--compression-ratio", "--save-attention", "--analysis-focus", "--format"):
        assert option in done.stdout


def test_policies_are_listed_with_their_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    result = CliRunner().invoke(app, ["policies"])
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert set(POLICIES) <= set(lines)
    assert "gamma=200.0" in lines["cake"]
    assert "sink_tokens=4" in lines["streaming_llm"]
    for name in PRESETS:
        assert name in result.stdout


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "code", "words"),
        [
            (CommandError("two\n  lines"), 2, "two lines"),
            (CacheStateError("the cache was used wrongly"), 2, "the cache was used wrongly"),
            (ValueError("x must be 1; got 2"), 2, "x must be 1; got 2"),
            (TypeError("x must be a number"), 2, "x must be a number"),
            (FileNotFoundError(2, "No such file or directory", "some/file"), 2, "some/file: No such file or directory"),
            (OSError(28, "No space left on device"), 2, "No space left on device"),
            (FileExistsError("plot.png is there already"), 2, "plot.png is there already"),
            (MemoryError(), 1, "memory is too small"),
        ],
        ids=["command", "engine", "value", "type", "file", "disk", "own file error", "memory"],
    )
    def test_becomes_one_line(
        self, error: Exception, code: int, words: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert report(error) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("kvcompress: error: ")
        assert err.count("\n") == 1
        assert words in err

    def test_of_a_library_says_how_to_see_more(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(ValueError, match="invalid literal") as caught:
            int("many")
        assert report(caught.value) == 2
        assert "ValueError: invalid literal" in capsys.readouterr().err

    def test_traceback_is_shown_where_asked_for(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KVCOMPRESS_TRACEBACK", "1")
        report(CommandError("no"))
        assert "CommandError: no" in capsys.readouterr().err

    def test_a_fault_of_the_program_is_raised(self) -> None:
        with pytest.raises(ZeroDivisionError):
            report(ZeroDivisionError())


def cache_report(tokens: list[float], seen: int) -> CacheReport:
    layers = [
        LayerReport(layer_idx=index, tokens=kept, budget=(0,), num_bytes=1, full_bytes=4)
        for index, kept in enumerate(tokens)
    ]
    return CacheReport(policy="cake", seen=seen, num_bytes=1, full_bytes=4, layers=tuple(layers))


def drawn(report_: CacheReport) -> list[str]:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(kept_chart(report_))
    return capture.get().splitlines()


class TestSummary:
    def test_bars_are_shares_of_what_was_seen(self) -> None:
        nothing, half, everything = drawn(cache_report([0, 50, 100], 100))
        assert "█" not in nothing
        assert half.count("█") == 20
        assert everything.count("█") == 40
        assert [line.split()[-1] for line in (nothing, half, everything)] == ["0", "50", "100"]

    def test_many_layers_share_bars(self) -> None:
        lines = drawn(cache_report([float(index) for index in range(80)], 100))
        assert len(lines) == 27 <= MOST_BARS
        assert lines[0].split()[0] == "0-2"
        assert lines[0].split()[-1] == "1"  # the mean of 0, 1 and 2
        assert lines[-1].split()[0] == "78-79"

    @pytest.mark.parametrize(
        ("count", "text"),
        [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (3 << 19, "1.50 MiB"), (5 << 40, "5120.00 GiB")],
    )
    def test_size(self, count: int, text: str) -> None:
        assert size(count) == text
