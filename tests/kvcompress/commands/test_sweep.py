"""``kvcompress bench sweep``, ``plot``, ``report`` and ``compare``: rows, resuming, interruptions, wrong use."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from kvcompress.bench.sweep import runner
from kvcompress.bench.sweep.row import Row, to_line
from kvcompress.bench.sweep.rows_file import read_rows
from kvcompress.bench.sweep.runner import Runner
from kvcompress.bench.tasks.run import run_samples
from kvcompress.cli import app
from kvcompress.commands import sweep_run
from tests.bench.sweep.rows import make_row, sweep_rows
from tests.kvcompress.commands.test_bad_input import refuse
from tests.source_tree import ROOT

CELLS = 6


def arguments(model: Path, out: Path, /, **changes: object) -> list[str]:
    """The command line of a small sweep."""
    options: dict[str, object] = {
        "policies": "cake,random",
        "cache-sizes": 24,
        "with": "window_size=8",
        "tasks": "needle_1",
        "lengths": 64,
        "samples": 3,
        "fidelity-samples": 2,
        "model": model,
        "device": "cpu",
        "out": out,
        **changes,
    }
    flags = [f"--{name}" for name, value in options.items() if value is True]
    return ["bench", "sweep", *flags, *(f"--{name}={value}" for name, value in options.items() if value is not True)]


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def outcome(rows: list[Row]) -> dict[object, object]:
    """What must be the same however a sweep is run."""
    return {row.cell: (row.scores, row.kl, row.top1, row.kv_bytes, row.layer_tokens) for row in rows}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """The rows of a sweep that nothing interrupted."""
    path = tmp_path_factory.mktemp("finished") / "rows.jsonl"
    result = invoke(*arguments(tiny, path))
    assert result.exit_code == 0, result.output
    return read_rows(path)


class TestSweep:
    def test_row_per_cell_with_what_was_promised(self, tiny: Path, out: Path, finished: list[Row]) -> None:
        result = invoke(*arguments(tiny, out))
        assert result.exit_code == 0, result.output
        assert result.stdout == f"written: {out} ({CELLS} new rows, 0 kept)\n"
        assert result.stderr.count(" left\n") == CELLS
        contents = [json.loads(line) for line in out.read_text().splitlines()]
        promised = (
            "policy cache_size ratio kv_bytes task length mode score n ci95 kl top1 tokens_per_second ttft peak_bytes "
            "seed versions commit"
        )
        assert all(set(promised.split()) <= set(content) for content in contents)
        assert [content["policy"] for content in contents].count("full") == 2
        assert not any(str(tiny.parent) in line for line in out.read_text().splitlines())
        assert outcome(read_rows(out)) == outcome(finished)  # one seed, the same figures

    def test_finished_cells_are_not_run_again(
        self, tiny: Path, out: Path, finished: list[Row], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out.write_text("".join(map(to_line, finished)))
        before = out.read_bytes()
        monkeypatch.setattr(Runner, "run", lambda *_: pytest.fail("a finished cell ran"))
        result = invoke(*arguments(tiny, out))
        assert result.exit_code == 0, result.output
        assert f"{CELLS} of {CELLS} cells are in {out} already" in result.stderr
        assert out.read_bytes() == before

    @pytest.mark.parametrize(
        ("change", "new"),
        [({"seed": 1}, CELLS), ({"cache-sizes": "24,32"}, 4), ({"with": "window_size=4"}, 4), ({"samples": 4}, CELLS)],
    )
    def test_changed_definition_is_not_taken_for_finished(
        self, tiny: Path, out: Path, finished: list[Row], change: dict[str, object], new: int
    ) -> None:
        out.write_text("".join(map(to_line, finished)))
        result = invoke(*arguments(tiny, out, **change))
        assert result.exit_code == 0, result.output
        assert f"({new} new rows" in result.stdout
        assert len(read_rows(out)) == CELLS + new

    def test_torn_row_is_dropped_with_a_note_and_runs_again(self, tiny: Path, out: Path, finished: list[Row]) -> None:
        out.write_text("".join(map(to_line, finished))[:-100])
        result = invoke(*arguments(tiny, out))
        assert result.exit_code == 0, result.output
        assert "ended in the middle of a row, which was dropped" in result.stderr
        assert f"(1 new rows, {CELLS - 1} kept)" in result.stdout
        assert outcome(read_rows(out)) == outcome(finished)

    @pytest.mark.parametrize(
        ("error", "status", "words"),
        [
            (KeyboardInterrupt(), 130, f"stopped: 2 of {CELLS} cells are finished"),
            (ValueError("it does not fit into the memory"), 2, "it does not fit into the memory"),
        ],
    )
    def test_interruption_loses_no_finished_row(
        self,
        tiny: Path,
        out: Path,
        finished: list[Row],
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
        status: int,
        words: str,
    ) -> None:
        real: Callable[..., Row] = Runner.run
        ran: list[object] = []

        def run(*given: Any) -> Row:
            ran.append(given)
            if len(ran) == 3:
                raise error
            return real(*given)

        with monkeypatch.context() as patch:
            patch.setattr(Runner, "run", run)
            result = invoke(*arguments(tiny, out))
        assert result.exit_code == status, result.output
        assert words in result.stderr
        assert len(read_rows(out)) == 2
        result = invoke(*arguments(tiny, out))
        assert f"({CELLS - 2} new rows, 2 kept)" in result.stdout
        assert outcome(read_rows(out)) == outcome(finished)

    def test_cell_that_does_not_fit_ends_the_sweep_and_loses_no_row(
        self, tiny: Path, out: Path, finished: list[Row], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real: Callable[..., Any] = run_samples
        cells: list[object] = []

        def run(*given: Any, **options: Any) -> Any:
            cells.append(given)
            if len(cells) == 4:
                raise torch.OutOfMemoryError("out of memory")
            return real(*given, **options)

        with monkeypatch.context() as patch:
            patch.setattr(runner, "run_samples", run)
            result = invoke(*arguments(tiny, out))
        assert result.exit_code == 2, result.output
        last = result.stderr.splitlines()[-1]
        for words in ("kvcompress: error: ", "does not fit into the memory", "--batch-size", "finished rows are kept"):
            assert words in last
        assert len(read_rows(out)) == 3
        result = invoke(*arguments(tiny, out))
        assert f"({CELLS - 3} new rows, 3 kept)" in result.stdout
        assert outcome(read_rows(out)) == outcome(finished)

    def test_model_that_does_not_fit_is_told(self, tiny: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def load(*_: object) -> None:
            raise MemoryError

        monkeypatch.setattr(sweep_run, "load_model", load)
        refuse(*arguments(tiny, out), words=("the model does not fit into the memory", "--dtype"))
        assert not out.exists()

    @pytest.mark.parametrize("room", [0, 1], ids=["none", "one MiB"])
    def test_room_for_prompts_changes_no_row(self, tiny: Path, out: Path, finished: list[Row], room: int) -> None:
        result = invoke(*arguments(tiny, out, **{"prompt-memory": room}))
        assert result.exit_code == 0, result.output
        assert outcome(read_rows(out)) == outcome(finished)

    @pytest.mark.slow
    def test_killed_sweep_resumes_to_the_same_rows(self, tiny: Path, out: Path, finished: list[Row]) -> None:
        code = "from kvcompress.cli import main; main()"
        command = [sys.executable, "-c", code, *arguments(tiny, out)]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            until = time.monotonic() + 120
            while time.monotonic() < until and process.poll() is None:
                if out.exists() and out.read_bytes().count(b"\n") >= 1:
                    break
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
        kept = out.read_bytes().count(b"\n")
        assert kept >= 1
        result = invoke(*arguments(tiny, out))
        assert result.exit_code == 0, result.output
        assert f"({CELLS - kept} new rows, {kept} kept)" in result.stdout
        assert outcome(read_rows(out)) == outcome(finished)

    @pytest.mark.slow
    def test_processes_give_the_same_rows(self, tiny: Path, out: Path, finished: list[Row]) -> None:
        result = invoke(*arguments(tiny, out, processes=2))
        assert result.exit_code == 0, result.output
        assert outcome(read_rows(out)) == outcome(finished)

    @pytest.mark.slow
    def test_ray_gives_the_same_rows(self, tiny: Path, out: Path, finished: list[Row]) -> None:
        ray = pytest.importorskip("ray", reason="needs the ray extra")
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
        try:
            result = invoke(*arguments(tiny, out, ray=True))
            assert result.exit_code == 0, result.output
            assert outcome(read_rows(out)) == outcome(finished)
            refuse(*arguments(tiny, out, ray=True, seed=1, **{"ray-actors": 2}), words=("--ray-actors", "[1, 1]"))
        finally:
            ray.shutdown()

    def test_without_ray_it_is_said_how_to_get_it(self, tiny: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        refuse(*arguments(tiny, out, ray=True), words=("--ray", "kvcompress[ray]"))

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"policies": "cake,cakes"}, ("policy", "cakes", "snapkv")),
            ({"policies": "cake:window"}, ("name=value", "cake:window")),
            ({"policies": ","}, ("policies", "none")),
            ({"with": "window_size"}, ("name=value", "window_size")),
            ({"cache-sizes": 7}, ("cake", "cache_size=7", "window_size")),
            ({"cache-sizes": "a"}, ("--cache-sizes", "'a'")),
            ({"ratios": "nan"}, ("--ratios", "nan")),
            ({"ratios": "1.5"}, ("compression_ratio", "1.5")),
            ({"tasks": "haystack"}, ("task", "haystack")),
            ({"lengths": 5}, ("needle_1", "length 5")),
            ({"modes": "aware"}, ("mode", "aware", "query_agnostic")),
            ({"samples": 0}, ("--samples",)),
            ({"prompt-memory": -1}, ("--prompt-memory",)),
            ({"ray": True, "processes": 2}, ("--ray", "--processes")),
            ({"model": "./nowhere"}, ("--model", "nowhere")),
            ({"out": "."}, ("--out",)),
        ],
    )
    def test_wrong_use_is_refused_before_anything_runs(
        self, tiny: Path, out: Path, change: dict[str, object], words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Runner, "run", lambda *_: pytest.fail("a cell ran"))
        refuse(*arguments(tiny, out, **change), words=words)
        assert not out.exists()

    def test_file_of_something_else_stays_as_it_is(self, tiny: Path, out: Path) -> None:
        out.write_text("notes of mine")
        refuse(*arguments(tiny, out), words=(str(out), "not the file of a sweep"))
        assert out.read_text() == "notes of mine"


class TestPlotAndReport:
    @pytest.mark.parametrize(("command", "files"), [("plot", 5), ("report", 7)])
    def test_files_are_written_and_named(self, out: Path, tmp_path: Path, command: str, files: int) -> None:
        out.write_text("".join(map(to_line, sweep_rows())))
        result = invoke("bench", command, out, "--out", tmp_path / "deep" / "folder")
        assert result.exit_code == 0, result.output
        named = [Path(line.removeprefix("written: ")) for line in result.stdout.splitlines()]
        assert sorted(named) == sorted((tmp_path / "deep" / "folder").iterdir())
        assert len(named) == files

    @pytest.mark.parametrize("command", ["plot", "report"])
    def test_wrong_use(self, out: Path, tmp_path: Path, command: str) -> None:
        refuse("bench", command, str(out), words=(str(out), "cannot be read"))
        out.write_text('{"schema": "kvcompress.bench/1"}\n')
        refuse("bench", command, str(out), words=(str(out), "line 1", "no row of a sweep"))
        out.write_text(to_line(make_row()).replace("sweep/1", "sweep/2"))
        refuse("bench", command, str(out), words=("sweep/2", "version"))
        out.write_text(to_line(make_row()) + to_line(make_row(model_digest="other")))
        refuse("bench", command, str(out), words=("model_digest", "file of its own"))
        out.write_text(to_line(make_row()))
        refuse("bench", command, str(out), "--out", str(out), words=("--out", "folder"))


class TestCompare:
    @pytest.mark.parametrize(("scores", "status"), [((1.0,) * 12, 0), ((0.0,) * 12, 1)])
    def test_regression_fails(self, tmp_path: Path, scores: tuple[float, ...], status: int) -> None:
        before, after = tmp_path / "before.jsonl", tmp_path / "after.jsonl"
        before.write_text(to_line(make_row((1.0,) * 12)))
        after.write_text(to_line(make_row(scores)) + to_line(make_row(task="copy")))
        result = invoke("bench", "compare", before, after)
        assert result.exit_code == status, result.output
        assert ("WORSE: cake" in result.stdout) is bool(status)
        assert "task copy" in result.stdout
        content = json.loads(invoke("bench", "compare", before, after, "--json").stdout)
        assert content["regressions"] == status

    def test_other_conditions_are_warned_of(self, tmp_path: Path) -> None:
        before, after = tmp_path / "before.jsonl", tmp_path / "after.jsonl"
        before.write_text(to_line(make_row()))
        after.write_text(to_line(make_row(cpu="another")))
        result = invoke("bench", "compare", before, after)
        assert result.exit_code == 0
        assert "cpu a processor / another" in result.stderr

    def test_rows_beside_a_run_of_times_are_refused(self, tmp_path: Path) -> None:
        rows, times = tmp_path / "rows.jsonl", tmp_path / "times.json"
        rows.write_text(to_line(make_row()))
        times.write_text('{"schema": "kvcompress.bench/1", "cases": []}\n')
        for pair in ((rows, times), (times, rows)):
            refuse("bench", "compare", *map(str, pair), words=(str(times), "no row of a sweep"))
