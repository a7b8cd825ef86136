"""Comparing runs: what counts as slower, what is in one run only, and which files are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.bench.compare_runs import BenchRun, Comparison, RowKey, Timing, compare, read_run
from kvcompress.bench.results_file import RESULTS

KEY = RowKey("case", "shape", "float32", "provider")
times = st.floats(1e-4, 1e4)


def timing(median: float, spread: float = 0.0, unit: str = "ms") -> Timing:
    return Timing(unit=unit, median=median, q20=median * (1 - spread), q80=median * (1 + spread))


def run_of(rows: dict[RowKey, Timing], **conditions: Any) -> BenchRun:
    known = dict.fromkeys(("device", "driver", "cpu", "clock", "threads", "torch", "triton", "transformers"))
    return BenchRun(name="run.json", conditions={**known, **conditions}, rows=rows)


def compared(before: Timing, after: Timing, threshold: float = 0.05) -> Comparison:
    return compare(run_of({KEY: before}), run_of({KEY: after}), threshold)


@pytest.mark.parametrize(
    ("after", "spread", "regressed", "improved"),
    [
        (1.04, 0.001, False, False),  # apart, but within the threshold
        (1.06, 0.001, True, False),
        (1.06, 0.04, False, False),  # beyond it, but within the noise
        (2.0, 0.3, True, False),
        (0.94, 0.001, False, True),
        (0.94, 0.04, False, False),
    ],
)
def test_slower_means_beyond_the_threshold_and_beyond_the_noise(
    after: float, spread: float, regressed: bool, improved: bool
) -> None:
    found = compared(timing(1.0, spread), timing(after, spread))
    (change,) = found.changes
    assert (change.regressed, change.improved) == (regressed, improved)
    assert change.ratio == pytest.approx(after)
    assert bool(found.regressions) is regressed


@given(st.dictionaries(st.text(max_size=3), st.tuples(times, st.floats(0, 0.9)), min_size=1), st.floats(0, 1))
def test_a_run_is_no_slower_than_itself(rows: dict[str, tuple[float, float]], threshold: float) -> None:
    run = run_of({KEY._replace(provider=name): timing(*values) for name, values in rows.items()})
    found = compare(run, run, threshold)
    assert len(found.changes) == len(rows)
    assert all(change.ratio == 1 and change.overlap for change in found.changes)
    assert not found.regressions
    assert (list(found.only_first), list(found.only_second), dict(found.differences)) == ([], [], {})


@given(times, times, st.floats(0, 0.5), st.floats(0, 0.5))
def test_what_got_slower_one_way_got_faster_the_other(
    first: float, second: float, noise: float, threshold: float
) -> None:
    (there,) = compared(timing(first, noise), timing(second, noise), threshold).changes
    (back,) = compared(timing(second, noise), timing(first, noise), threshold).changes
    assert there.ratio * back.ratio == pytest.approx(1)
    assert there.overlap == back.overlap
    if abs(there.ratio - (1 + threshold)) > 1e-9 and abs(back.ratio - (1 + threshold)) > 1e-9:
        assert (there.regressed, there.improved) == (back.improved, back.regressed)


def test_rows_are_matched_by_all_that_names_them_and_by_unit() -> None:
    others = [KEY._replace(**{name: "other"}) for name in RowKey._fields]
    first = run_of({KEY: timing(1), **{key: timing(1) for key in others}})
    second = run_of({KEY: timing(1), others[0]: timing(1, unit="ms on the device")})
    found = compare(first, second)
    assert [change.key for change in found.changes] == [KEY]
    assert list(found.only_first) == others
    assert list(found.only_second) == [others[0]]


def test_conditions_that_differ_are_named() -> None:
    first = run_of({KEY: timing(1)}, device="cpu", torch="2.11")
    second = run_of({KEY: timing(1)}, device="NVIDIA H200", torch="2.11")
    assert compare(first, second).differences == {"device": ("cpu", "NVIDIA H200")}


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf")])
def test_threshold_is_a_fraction(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold must be a fraction of at least 0"):
        compared(timing(1), timing(1), threshold)


ROW = {**KEY._asdict(), "unit": "ms", "median": 2.0, "q20": 1.0, "q80": 3.0}


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_run_is_read_without_the_rows_that_were_not_timed(tmp_path: Path) -> None:
    skipped = {**KEY._asdict(), "provider": "full", "reason": "out of memory"}
    content = {"schema": "kvcompress.bench/1", "device": "cpu", "cases": [ROW, skipped]}
    run = read_run(written(tmp_path / "run.json", content))
    assert run.rows == {KEY: Timing(unit="ms", median=2.0, q20=1.0, q80=3.0)}
    assert run.conditions["device"] == "cpu"
    assert run.conditions["triton"] is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is no JSON"),
        ([], "schema must begin with 'kvcompress.bench'"),
        ({"schema": "someone.else/1", "cases": [ROW]}, "schema must begin with"),
        ({"schema": "kvcompress.bench/1"}, "a list 'cases'"),
        ({"schema": "kvcompress.bench/1", "cases": [1]}, "a list 'cases'"),
        ({"schema": "kvcompress.bench/1", "cases": []}, "no timed rows"),
        ({"schema": "kvcompress.bench/1", "cases": [{**ROW, "q80": None}]}, "a row without q80"),
        ({"schema": "kvcompress.bench/1", "cases": [{**ROW, "median": -1}]}, "a row without median"),
        ({"schema": "kvcompress.bench/1", "cases": [{**ROW, "unit": 3}]}, "a row without unit"),
        ({"schema": "kvcompress.bench/1", "cases": [ROW, ROW]}, "two rows of case / shape / float32 / provider"),
    ],
)
def test_damaged_and_foreign_files_are_refused(tmp_path: Path, content: Any, words: str) -> None:
    path = written(tmp_path / "broken.json", content)
    with pytest.raises(ValueError, match=words) as caught:
        read_run(path)
    assert "broken.json" in str(caught.value)


def test_missing_file_and_binary_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_run(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no JSON"):
        read_run(tmp_path / "bytes.json")


@pytest.mark.parametrize("name", ["engine_cpu.json", "kernels_cpu.json"])
def test_the_runs_of_this_project_can_be_compared(name: str) -> None:
    run = read_run(RESULTS / name)
    assert len(compare(run, run).changes) == len(run.rows) > 10
