"""``kvcompress bench``: what it prints and writes, its exit codes, and wrong use."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner, Result

from kvcompress.bench.kernels_bench import kernel_speed
from kvcompress.bench.results_file import results, write_results
from kvcompress.cli import app
from kvcompress.commands.figures import three_digits
from kvcompress.commands.run_comparison import show
from tests.kvcompress.commands.test_bad_input import refuse

QUICK = ("bench", "kernels", "--quick", "--shapes", "small", "--device", "cpu")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def row(provider: str = "torch", median: float = 1.0, **changes: Any) -> dict[str, Any]:
    figures = {"unit": "ms", "median": median, "q20": 0.99 * median, "q80": 1.01 * median}
    return {"case": "compact", "shape": "tiny [x]", "dtype": "float32", "provider": provider, **figures, **changes}


def run_file(path: Path, *rows: dict[str, Any], **conditions: Any) -> Path:
    write_results(results(rows, made_in={"device": "cpu", **conditions}), path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "before.json", tmp_path / "after.json"


class TestKernels:
    def test_prints_a_table_per_case_and_writes_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "160")
        out = tmp_path / "deep" / "run.json"
        result = invoke(*QUICK, "--operations", "compact, decode_attend", "--out", out)
        assert result.exit_code == 0, result.output
        for words in ("compact: small", "torch_gather", "decode_attend: small", "sdpa_on_slots", "[20 %, 80 %]"):
            assert words in result.stdout
        assert result.stdout.count("not timed: triton") == 1  # once, not for each case
        assert f"written: {out}" in result.stdout
        content = json.loads(out.read_text(encoding="utf-8"))
        assert content["schema"] == "kvcompress.bench.kernels/1"
        assert content["device"] == "cpu"
        assert content["quick"] is True
        assert content["copy_bandwidth_bytes_per_second"] > 0
        assert {case["case"] for case in content["cases"]} == {"copy", "compact", "decode_attend"}
        assert all(case["share_of_bandwidth"] > 0 for case in content["cases"])
        assert {entry["provider"] for entry in content["left_out"]} >= {"triton"}

    def test_what_was_timed_is_there_when_a_later_case_breaks_off(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def breaks(layer: object) -> None:
            raise KeyboardInterrupt

        cases = {**kernel_speed.OPERATIONS, "decode_attend": breaks}
        monkeypatch.setattr(kernel_speed, "OPERATIONS", cases)
        out = tmp_path / "run.json"
        assert invoke(*QUICK, "--operations", "compact,decode_attend", "--out", out).exit_code != 0
        content = json.loads(out.read_text(encoding="utf-8"))
        assert content["complete"] is False
        assert {case["case"] for case in content["cases"]} == {"copy", "compact"}
        assert invoke(*QUICK, "--operations", "compact", "--out", out).exit_code == 0
        assert json.loads(out.read_text(encoding="utf-8"))["complete"] is True

    def test_json_is_all_there_is_on_stdout(self) -> None:
        result = invoke(*QUICK, "--operations", "select_top_k", "--json", "--cpu-time")
        assert result.exit_code == 0, result.output
        content = json.loads(result.stdout)
        assert content["clock"] == "processor time"
        assert content["threads"] == 1

    def test_wrong_result_is_said_and_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from kvcompress.bench.kernels_bench import prefill_cases

        monkeypatch.setattr(prefill_cases, "_copy_error", lambda copies, expected: 1.0)
        result = invoke(*QUICK, "--operations", "compact")
        assert result.exit_code == 1
        assert "torch gives a wrong result in case 'compact'" in result.stderr

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--operations", "attention"), ("--operations", "attention", "select_top_k")),
            (("--shapes", "large"), ("shapes", "large", "llama-3.1-8b")),
            (("--backend", "jax"), ("backend", "jax")),
            (("--backend", "triton"), ("triton", "GPU", "backend='torch'")),
            (("--dtype", "float8"), ("--dtype", "float8")),
            (("--out", "."), ("--out", "folder")),
            (("--out", "pyproject.toml/run.json"), ("--out", "can be written")),
        ],
    )
    def test_wrong_use(self, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
        refuse(*QUICK, *arguments, words=words)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_no_gpu(self) -> None:
        refuse("bench", "kernels", "--device", "cuda", words=("--device cuda", "torch sees none"))


class TestCompare:
    def test_equal_runs(self, files: tuple[Path, Path]) -> None:
        for path in files:
            run_file(path, row(), row("triton", 0.1))
        result = invoke("bench", "compare", *files)
        assert result.exit_code == 0, result.output
        assert "compact: tiny [x], float32" in result.stdout
        assert "2 rows compared: 0 slower and 0 faster" in result.stdout
        assert result.stderr == ""

    def test_regression_fails_and_is_shown_with_its_quantiles(self, files: tuple[Path, Path]) -> None:
        run_file(files[0], row(median=1.0))
        run_file(files[1], row(median=1.5))
        result = invoke("bench", "compare", *files)
        assert result.exit_code == 1
        (line,) = [line for line in result.stdout.splitlines() if "SLOWER" in line]
        assert " ".join(line.split()) == "torch 1.00 ms [0.990, 1.01] 1.50 ms [1.48, 1.52] 1.500 SLOWER"
        assert invoke("bench", "compare", *reversed(files)).exit_code == 0
        assert invoke("bench", "compare", *files, "--threshold", "0.6").exit_code == 0

    def test_rows_of_one_run_and_other_conditions_are_said(self, files: tuple[Path, Path]) -> None:
        run_file(files[0], row(), row("gone"), torch="2.11")
        run_file(files[1], row(), row("new"), torch="2.13")
        result = invoke("bench", "compare", *files)
        assert result.exit_code == 0
        before, after = result.stdout.split("only in ")[1:]
        assert "gone" in before
        assert "new" in after
        assert result.stderr.startswith("kvcompress: warning: ")
        assert "torch 2.11 / 2.13" in result.stderr
        assert result.stderr.count("\n") == 1

    def test_json(self, files: tuple[Path, Path]) -> None:
        run_file(files[0], row(median=1.0), row("gone"))
        run_file(files[1], row(median=2.0))
        result = invoke("bench", "compare", *files, "--json")
        assert result.exit_code == 1
        content = json.loads(result.stdout)
        assert content["schema"] == "kvcompress.bench.compare/1"
        assert content["regressions"] == 1
        assert content["rows"][0]["ratio"] == 2.0
        assert content["rows"][0]["before"] == {"median": 1.0, "q20": 0.99, "q80": 1.01}
        assert [entry["provider"] for entry in content["only_in_first"]] == ["gone"]

    def test_wrong_use(self, files: tuple[Path, Path]) -> None:
        run_file(files[0], row())
        files[1].write_text("{", encoding="utf-8")
        refuse("bench", "compare", *files, words=("after.json", "no JSON"))
        refuse("bench", "compare", files[0], "nowhere.json", words=("nowhere.json", "cannot be read"))
        refuse("bench", "compare", files[0], files[0], "--threshold", "-1", words=("threshold", "-1"))
        refuse("bench", "compare", files[0], words=("second",))

    def test_names_with_brackets_are_printed_as_they_are(self) -> None:
        from kvcompress.bench.compare_runs import BenchRun, RowKey, Timing, compare

        key = RowKey("[red]case[/red]", "[1]", "float32", "p")
        run = BenchRun(name="r", conditions=dict.fromkeys(
            ("device", "driver", "cpu", "clock", "threads", "torch", "triton", "transformers")
        ), rows={key: Timing(unit="ms", median=1.0, q20=1.0, q80=1.0)})  # fmt: skip
        console = Console(width=100)
        with console.capture() as capture:
            show(compare(run, run), console, ("a", "b"))
        assert "[red]case[/red]: [1], float32" in capture.get()


def test_without_a_command_it_shows_the_commands() -> None:
    result = invoke("bench")
    assert result.exit_code == 0
    assert "kernels" in result.stdout
    assert "compare" in result.stdout


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234.5, "1234"),
        (123.4, "123"),
        (12.34, "12.3"),
        (1.234, "1.23"),
        (0.01234, "0.0123"),
        (1e-7, "0.00000010"),
        (0, "0"),
    ],
)
def test_three_digits(value: float, text: str) -> None:
    assert three_digits(value) == text
